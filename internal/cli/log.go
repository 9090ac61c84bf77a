// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"log/slog"
	"net/url"
)

// withoutQueries is a handler for what libraries log. It drops records that hold
// the query of a request, as Kubernetes' request parser logs it when it cannot read
// it: a client chose it, and there may be a token in it. The request's own line
// tells what was wrong.
type withoutQueries struct{ slog.Handler }

// Handle drops or passes on a record.
func (h withoutQueries) Handle(ctx context.Context, r slog.Record) error {
	dropped := false
	r.Attrs(func(a slog.Attr) bool {
		_, dropped = a.Value.Any().(url.Values)
		return !dropped
	})
	if dropped {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs keeps the rule for loggers that are made of this one.
func (h withoutQueries) WithAttrs(attrs []slog.Attr) slog.Handler {
	return withoutQueries{h.Handler.WithAttrs(attrs)}
}

// WithGroup keeps the rule for loggers that are made of this one.
func (h withoutQueries) WithGroup(name string) slog.Handler {
	return withoutQueries{h.Handler.WithGroup(name)}
}

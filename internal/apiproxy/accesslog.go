// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
)

// AccessLog says which requests get a line in the log. Sessions, and requests that the proxy
// refuses or ends, always get one.
type AccessLog string

// Access logs.
const (
	AccessLogAll AccessLog = "all"
	// AccessLogMutating is for requests that may change something: all verbs but get, list,
	// watch, head and options.
	AccessLogMutating AccessLog = "mutating"
	AccessLogNone     AccessLog = "none"
)

// has reports whether a call gets a line that has ended, by cause if that is not nil.
func (a AccessLog) has(c *call, cause error) bool {
	var f *refusal
	switch {
	case c.refused != nil, errors.As(cause, &f), c.kind == KindStream:
		return true
	case a == AccessLogNone:
		return false
	case a == AccessLogMutating:
		return !slices.Contains([]string{"get", "list", "watch", "head", "options"}, c.verb())
	}
	return true
}

// record counts and logs a call that has ended, by cause if that is not nil.
func (p *Proxy) record(c *call, r *http.Request, seen *responseWriter, cause error) {
	whole := time.Since(c.start)
	first := whole
	if at := seen.began; !at.IsZero() {
		first = at.Sub(c.start)
	}
	p.config.Metrics.answered(c, seen.code(), first, whole)
	if !p.config.AccessLog.has(c, cause) {
		return
	}
	// To the handler, because the level of the log is for what the program has to say of itself.
	line := slog.NewRecord(time.Now(), slog.LevelInfo, "request", 0)
	line.AddAttrs(c.asked(r)...)
	line.AddAttrs(c.became(r, seen, whole)...)
	line.AddAttrs(c.outcome(cause)...)
	_ = p.config.Log.Handler().Handle(r.Context(), line) // as a Logger does with its error
}

// asked says who asked for what. No header and no body is logged, so no token is.
func (c *call) asked(r *http.Request) []slog.Attr {
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs,
		text("user", c.caller.User),
		slog.Any("groups", c.caller.Groups),
		text("node", c.caller.Node),
		text("address", c.addr.String()),
		text("kind", string(c.kind)),
		text("method", r.Method))
	if c.narrowed {
		attrs = append(attrs, slog.Any("asGroups", c.groups))
	}
	switch info := c.info; {
	case info == nil:
	case info.IsResourceRequest:
		attrs = append(attrs,
			text("verb", info.Verb),
			text("apiGroup", info.APIGroup),
			text("resource", info.Resource),
			text("subresource", info.Subresource),
			text("namespace", info.Namespace),
			text("name", info.Name))
	default:
		attrs = append(attrs, text("verb", info.Verb), text("path", info.Path))
	}
	return attrs
}

// became says what the client was sent.
func (c *call) became(r *http.Request, seen *responseWriter, whole time.Duration) []slog.Attr {
	return []slog.Attr{
		slog.Int("code", seen.code()),
		slog.Float64("seconds", whole.Seconds()),
		slog.Int64("bytes", seen.sent.Load()),
		slog.Int64("bytesReceived", seen.received.Load()),
		text("userAgent", r.UserAgent()),
		text("auditID", c.auditID),
	}
}

// outcome says what became of a recording, and who ended the call if neither the client
// nor the API server did.
func (c *call) outcome(cause error) []slog.Attr {
	var attrs []slog.Attr
	if rec := c.recording; rec != nil && (rec.to != nil || c.refused == nil) {
		attrs = rec.log()
	}
	switch f := c.refused; {
	case f != nil:
		attrs = append(attrs, slog.String("refused", f.label))
		if f.cause != nil {
			attrs = append(attrs, slog.String("error", clipError(f.cause)))
		}
	case errors.As(cause, &f):
		attrs = append(attrs, slog.String("ended", f.label))
	case errors.Is(cause, errDrained), c.body.Load().ended():
		attrs = append(attrs, slog.String("ended", reasonDraining))
	}
	return attrs
}

// text is an attribute of the access log that a client may have chosen.
func text(key, value string) slog.Attr { return slog.String(key, clip(value)) }

// maxLogged is how many bytes of what a client chose are logged: enough for every
// name in Kubernetes, and too few to fill a disk with.
const maxLogged = 256

// clip shortens what a client chose.
func clip(s string) string { return clipTo(s, maxLogged) }

// maxLoggedError is how many bytes of an error are logged: some name several servers.
const maxLoggedError = 1 << 10

// clipError returns what an error says, shortened.
func clipError(err error) string { return clipTo(err.Error(), maxLoggedError) }

func clipTo(s string, limit int) string {
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return strings.Map(printable, s)
}

// printable returns r, or what stands for it where it could command a terminal that shows
// the log: JSON escapes only those controls that are in ASCII.
func printable(r rune) rune {
	if unicode.IsControl(r) && r >= 0x7f {
		return unicode.ReplacementChar
	}
	return r
}

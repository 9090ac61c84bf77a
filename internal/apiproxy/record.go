// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
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

// record counts and logs a call that has ended, by cause if that is not nil. No
// header and no body is logged, so no token is.
func (p *Proxy) record(c *call, r *http.Request, seen *responseWriter, cause error) {
	whole := time.Since(c.start)
	first := whole
	if at := seen.began; !at.IsZero() {
		first = at.Sub(c.start)
	}
	code := seen.code()
	p.config.Metrics.answered(c, code, first, whole)
	ctx := r.Context()
	if !p.config.AccessLog.has(c, cause) {
		return
	}
	attrs := make([]slog.Attr, 0, 24)
	attrs = append(attrs,
		slog.String("user", c.caller.User),
		slog.Any("groups", c.caller.Groups),
		slog.String("node", c.caller.Node),
		slog.String("address", c.addr.String()),
		slog.String("kind", string(c.kind)),
		slog.String("method", r.Method))
	if c.narrowed {
		attrs = append(attrs, slog.Any("asGroups", c.groups))
	}
	if c.info != nil {
		attrs = append(attrs, slog.String("verb", c.info.Verb))
		if c.info.IsResourceRequest {
			attrs = append(attrs,
				slog.String("apiGroup", c.info.APIGroup),
				slog.String("resource", c.info.Resource),
				slog.String("subresource", c.info.Subresource),
				slog.String("namespace", c.info.Namespace),
				slog.String("name", c.info.Name))
		} else {
			attrs = append(attrs, slog.String("path", c.info.Path))
		}
	}
	attrs = append(attrs,
		slog.Int("code", code),
		slog.Float64("seconds", whole.Seconds()),
		slog.Int64("bytes", seen.sent.Load()),
		slog.Int64("bytesReceived", seen.received.Load()),
		slog.String("userAgent", r.UserAgent()),
		slog.String("auditID", c.auditID))
	for i, a := range attrs { // whoever chose it
		if a.Value.Kind() == slog.KindString {
			attrs[i].Value = slog.StringValue(clip(a.Value.String()))
		}
	}
	if rec := c.recording; rec != nil && (rec.to != nil || c.refused == nil) {
		attrs = append(attrs, rec.log()...)
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
	// To the handler, because the level of the log is for what the program has to say of itself.
	line := slog.NewRecord(time.Now(), slog.LevelInfo, "request", 0)
	line.AddAttrs(attrs...)
	_ = p.config.Log.Handler().Handle(ctx, line) // as a Logger does with its error
}

// responseWriter notes what becomes of a response: its code, when it began and
// how much was sent. A connection taken over for a stream is counted too.
type responseWriter struct {
	http.ResponseWriter
	ctx      context.Context // of the call
	status   int
	began    time.Time
	sent     atomic.Int64
	received atomic.Int64 // of a stream
}

// Unwrap is for http.ResponseController.
func (w *responseWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the final status; 1xx are not final.
func (w *responseWriter) WriteHeader(code int) {
	if w.status == 0 && code >= http.StatusOK {
		w.status, w.began = code, time.Now()
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *responseWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status, w.began = http.StatusOK, time.Now()
	}
	n, err := w.ResponseWriter.Write(p)
	w.sent.Add(int64(n))
	return n, err
}

// Hijack gives the connection to a stream. It is closed when the call ends: the
// reverse proxy then closes its other side only, and might wait for this one.
func (w *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	context.AfterFunc(w.ctx, func() { _ = conn.Close() })
	w.status, w.began = http.StatusSwitchingProtocols, time.Now()
	return &countedConn{Conn: conn, w: w}, rw, nil
}

// code returns the status that the client was sent.
func (w *responseWriter) code() int {
	if w.status == 0 {
		return http.StatusOK // what net/http sends for a handler that wrote nothing
	}
	return w.status
}

// countedConn counts what passes through a connection that was taken over.
type countedConn struct {
	net.Conn
	w *responseWriter
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.w.received.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.w.sent.Add(int64(n))
	return n, err
}

// CloseWrite ends one direction, when the connection can. Otherwise it errs, and
// the reverse proxy ends both. The client then has lingerTimeout to close: closing
// while it sends would take back what it has not received yet.
func (c *countedConn) CloseWrite() error {
	if err := closeWrite(c.Conn); err != nil {
		return err
	}
	return c.SetReadDeadline(time.Now().Add(lingerTimeout))
}

// closeWrite ends the writing direction of conn, as TCP and TLS can.
func closeWrite(conn net.Conn) error {
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

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
		return strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return s
}

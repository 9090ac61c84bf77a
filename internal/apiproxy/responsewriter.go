// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

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

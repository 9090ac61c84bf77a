// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// handover is a listener that servers accept from one after the other, so that one can
// send its clients away and no connection is refused.
type handover struct {
	net.Listener
	accepted chan accepted
	closed   chan struct{}
	once     sync.Once
}

// accepted is what Accept returned.
type accepted struct {
	conn net.Conn
	err  error
}

// newHandover takes over a listener, until Close.
func newHandover(l net.Listener) *handover {
	h := &handover{Listener: l, accepted: make(chan accepted), closed: make(chan struct{})}
	go h.pump()
	return h
}

// pump accepts for whoever's turn it is.
func (h *handover) pump() {
	for {
		conn, err := h.Accept()
		select {
		case <-h.closed: // whose turn it is learns of it from its own Close
		default:
			select {
			case h.accepted <- accepted{conn, err}:
				continue
			case <-h.closed:
			}
		}
		if conn != nil {
			_ = conn.Close()
		}
		return
	}
}

// Close closes the listener: further connections are refused.
func (h *handover) Close() error {
	var err error
	h.once.Do(func() {
		close(h.closed)
		err = h.Listener.Close()
	})
	return err
}

// turn returns a listener for one server. Its Close ends the turn alone.
func (h *handover) turn() net.Listener {
	return &turn{handover: h, over: make(chan struct{})}
}

type turn struct {
	*handover
	once sync.Once
	over chan struct{}
}

// Accept returns the next connection.
func (t *turn) Accept() (net.Conn, error) {
	select {
	case <-t.over:
		return nil, net.ErrClosed
	default:
	}
	select {
	case <-t.over:
		return nil, net.ErrClosed
	case a := <-t.accepted:
		return a.conn, a.err
	}
}

// Close ends the turn.
func (t *turn) Close() error {
	t.once.Do(func() { close(t.over) })
	return nil
}

// traffic knows the connections that wait for something: their first request, or an
// answer. Those that were taken over by a stream are not among them.
type traffic struct {
	mu   sync.Mutex
	busy map[net.Conn]struct{}
	// quiet is closed while none is busy.
	quiet chan struct{}
}

func newTraffic() *traffic {
	t := &traffic{busy: map[net.Conn]struct{}{}, quiet: make(chan struct{})}
	close(t.quiet)
	return t
}

// note is an [http.Server]'s ConnState.
func (t *traffic) note(conn net.Conn, state http.ConnState) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := len(t.busy)
	if state == http.StateNew || state == http.StateActive {
		t.busy[conn] = struct{}{}
	} else {
		delete(t.busy, conn)
	}
	switch now := len(t.busy); {
	case was == 0 && now > 0:
		t.quiet = make(chan struct{})
	case was > 0 && now == 0:
		close(t.quiet)
	}
}

// wait returns when no connection is busy, or ctx's error.
func (t *traffic) wait(ctx context.Context) error {
	t.mu.Lock()
	quiet := t.quiet
	t.mu.Unlock()
	select {
	case <-quiet:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

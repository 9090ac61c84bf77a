// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"testing"
)

// Clients are asked to leave a connection on which nothing goes on before they are sent
// elsewhere: once they are, it is dead, and a write on it fails.
func TestWithdrawEndsIdleConnections(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		t.Run(fmt.Sprintf("HTTP/2: %v", http2), func(t *testing.T) {
			withdrawing, withdrawn := make(chan struct{}), make(chan struct{})
			r := start(t, newAPIServer(t, nil), options{withdraw: func(ctx context.Context, quiesce func(context.Context)) error {
				quiesce(ctx)
				close(withdrawing)
				<-withdrawn
				return nil
			}})
			client := r.client(t, alice.Addr, http2)
			if reused := r.reuses(t, client); reused {
				t.Fatal("the first request reuses a connection")
			}
			if reused := r.reuses(t, client); !reused {
				t.Fatal("the second request does not reuse the connection of the first one")
			}
			r.stop()
			receive(t, withdrawing, "the call of Withdraw") // closed by it
			for i := range 2 {
				if reused := r.reuses(t, client); reused {
					t.Errorf("request %d after that reuses a connection", i)
				}
			}
			close(withdrawn)
			if err := receive(t, r.served, "the end of Serve"); err != nil {
				t.Errorf("Serve returns %v", err)
			}
		})
	}
}

// While clients are sent elsewhere, a connection takes no further request after one was
// answered, even if another one goes on all the time.
func TestWithdrawEndsBusyConnections(t *testing.T) {
	withdrawing, withdrawn := make(chan struct{}), make(chan struct{})
	api := newDrainAPI(t)
	r := start(t, api.apiServer, options{withdraw: func(context.Context, func(context.Context)) error {
		close(withdrawing)
		<-withdrawn
		return nil
	}})
	r.stop()
	receive(t, withdrawing, "the call of Withdraw") // closed by it
	client := r.client(t, alice.Addr, true)
	slow := r.slowGetBy(t, api, client)
	if reused := r.reuses(t, client); !reused {
		t.Error("a request does not share the connection of the one that goes on")
	}
	if reused := r.reuses(t, client); reused {
		t.Error("the next request is sent on that connection, too")
	}
	api.release()
	if got := receive(t, slow, "the answer"); got != (answer{http.StatusOK, "finished", nil}) {
		t.Errorf("the request that went on is answered %+v", got)
	}
	close(withdrawn)
	if err := receive(t, r.served, "the end of Serve"); err != nil {
		t.Errorf("Serve returns %v", err)
	}
}

// reuses sends a request, which must succeed, and reports whether that reused a
// connection.
func (r *rig) reuses(t *testing.T, client *http.Client) (reused bool) {
	t.Helper()
	request := r.request(t, http.MethodGet, "/version", nil, nil)
	request = request.WithContext(httptrace.WithClientTrace(request.Context(), &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused },
	}))
	res, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("%s, %v", res.Status, err)
	}
	return reused
}

// Two servers accept from one listener, one after the other, without a connection that is
// refused; and then all are.
func TestHandover(t *testing.T) {
	l := listen(t)
	h := newHandover(l)
	connect := func() error {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
		if err == nil {
			t.Cleanup(func() { _ = conn.Close() })
		}
		return err
	}
	accepts := func(turn net.Listener) {
		t.Helper()
		conn, err := turn.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	first, second := h.turn(), h.turn()
	if err := connect(); err != nil {
		t.Fatal(err)
	}
	accepts(first)
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if err := connect(); err != nil {
		t.Fatal(err)
	}
	if conn, err := first.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a turn that is over accepts %v, %v", conn, err)
	}
	accepts(second)
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if err := connect(); err == nil {
		t.Error("a closed listener takes a connection")
	}
	_ = second.Close()
	if _, err := second.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the last turn ends with %v", err)
	}
}

// A connection is busy until its first request has been answered, and again with each
// further one. One that a stream has taken over is not.
func TestTraffic(t *testing.T) {
	a, b := net.Pipe()
	busy := newTraffic()
	quiet := func() bool {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		select {
		case <-busy.quiet:
			return busy.wait(t.Context()) == nil
		default:
			return busy.wait(ctx) == nil
		}
	}
	if !quiet() {
		t.Error("busy before anything was accepted")
	}
	for i, step := range []struct {
		conn  net.Conn
		state http.ConnState
		quiet bool
	}{
		{a, http.StateNew, false},
		{a, http.StateActive, false},
		{b, http.StateNew, false},
		{a, http.StateIdle, false},
		{b, http.StateHijacked, true},
		{a, http.StateActive, false},
		{a, http.StateClosed, true},
		{b, http.StateClosed, true},
	} {
		busy.note(step.conn, step.state)
		if quiet() != step.quiet {
			t.Errorf("after step %d: quiet %v", i, !step.quiet)
		}
	}
}

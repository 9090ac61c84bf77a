// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// drainAPI is an API server for drains: requests for /api/v1/nodes wait until
// released, /version is answered at once, the rest is watchAPI.
type drainAPI struct {
	*apiServer
	events  chan struct{}
	arrived chan struct{}
	release func()
}

func newDrainAPI(t *testing.T) *drainAPI {
	t.Helper()
	released := make(chan struct{})
	a := &drainAPI{events: make(chan struct{}), arrived: make(chan struct{}, 8), release: sync.OnceFunc(func() { close(released) })}
	others := watchAPI(a.events)
	a.apiServer = newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/version" {
			_, _ = io.WriteString(w, "{}")
			return
		}
		if r.URL.Path != "/api/v1/nodes" {
			others(w, r)
			return
		}
		a.arrived <- struct{}{}
		select {
		case <-released:
			_, _ = io.WriteString(w, "finished")
		case <-r.Context().Done():
		}
	})
	return a
}

// answer is what a client gets.
type answer struct {
	code int
	body string
	err  error
}

// slowGet begins a request that the API server answers when it is released, and
// returns once it has arrived there.
func (r *rig) slowGet(t *testing.T, api *drainAPI, http2 bool) <-chan answer {
	t.Helper()
	return r.slowGetBy(t, api, r.client(t, alice.Addr, http2))
}

func (r *rig) slowGetBy(t *testing.T, api *drainAPI, client *http.Client) <-chan answer {
	t.Helper()
	answers := make(chan answer, 1)
	request := r.request(t, http.MethodGet, "/api/v1/nodes", nil, nil)
	go func() {
		res, err := client.Do(request)
		if err != nil {
			answers <- answer{err: err}
			return
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		answers <- answer{res.StatusCode, string(body), err}
	}()
	receive(t, api.arrived, "the request")
	return answers
}

// draining begins a drain with open streams and waits until it has begun.
func (r *rig) draining(t *testing.T) {
	t.Helper()
	r.stop()
	r.logs.lines(t, "serving on until streams have ended", 1)
}

// closed waits until no new connection is taken, neither by the API nor by the redirect
// to it.
func (r *rig) closed(t *testing.T) {
	t.Helper()
	for _, address := range []string{r.address, r.redirect} {
		eventually(t, "new connections are refused", func() bool {
			conn, err := dialerOf(bob.Addr).DialContext(t.Context(), "tcp", address)
			if err == nil {
				_ = conn.Close()
			}
			return err != nil
		})
	}
}

// A drain goes on serving requests and watches while streams are open. Then it lets requests
// finish, and ends watches cleanly.
func TestDrain(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		for _, plain := range []bool{true, false} {
			if plain && http2 {
				continue
			}
			t.Run(fmt.Sprintf("HTTP/2: %v, plain: %v", http2, plain), func(t *testing.T) {
				api := newDrainAPI(t)
				r := start(t, api.apiServer, options{plain: plain})
				rest := r.slowGet(t, api, http2)
				w, s := r.watch(t, alice.Addr, http2), r.stream(t, alice.Addr, http.MethodPost, "SPDY/3.1")
				s.ping(t)

				r.draining(t)
				newcomer := r.client(t, bob.Addr, http2)
				for _, wantReused := range []bool{false, true} {
					if reused := r.reuses(t, newcomer); reused != wantReused {
						t.Errorf("a request while a stream is open: connection reused %v, want %v", reused, wantReused)
					}
				}
				another := r.watch(t, bob.Addr, http2)
				for range 2 {
					api.events <- struct{}{}
				}
				w.event(t)
				another.event(t)
				if _, code := r.upgrade(t, bob.Addr, http.MethodPost, "SPDY/3.1"); code != http.StatusServiceUnavailable {
					t.Errorf("another session is answered %d", code)
				}
				s.ping(t)

				_ = s.Close()
				r.closed(t)
				api.events <- struct{}{} // watches go on while a request does
				api.events <- struct{}{}
				w.event(t)
				another.event(t)

				api.release()
				if got := receive(t, rest, "the answer"); got != (answer{http.StatusOK, "finished", nil}) {
					t.Errorf("the request in flight is answered %+v", got)
				}
				for _, w := range []*watch{w, another} {
					if err := w.end(t); err != nil {
						t.Errorf("the watch ends with %v, want a clean end", err)
					}
				}
				if err := receive(t, r.served, "the end of Serve"); err != nil {
					t.Errorf("Serve returns %v", err)
				}
			})
		}
	}
}

// What a drain does not begin any more is refused with word to try again.
func TestDrainRefusesStreams(t *testing.T) {
	r := start(t, newDrainAPI(t).apiServer, options{})
	s := r.stream(t, alice.Addr, http.MethodPost, "SPDY/3.1")
	r.draining(t)
	res, body := r.get(t, bob.Addr, "/api/v1/namespaces/a/pods/b/log?follow=true", nil)
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") != "1" || !strings.Contains(body, "starts no new sessions. Try again in a minute.") {
		t.Errorf("%s, Retry-After %q: %s", res.Status, res.Header.Get("Retry-After"), body)
	}
	s.ping(t)
	_ = s.Close()
	if err := receive(t, r.served, "the end of Serve"); err != nil {
		t.Errorf("Serve returns %v", err)
	}
}

// A watch that begins in a drain, on a connection that is open, ends at once and
// cleanly, too.
func TestDrainEndsNewWatches(t *testing.T) {
	api := newDrainAPI(t)
	r := start(t, api.apiServer, options{})
	s := r.stream(t, bob.Addr, http.MethodPost, "SPDY/3.1") // keeps the drain going
	r.proxy.calls.endWatches()
	res, err := r.client(t, alice.Addr, true).Do(r.request(t, http.MethodGet, "/api/v1/pods?watch=1", nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if _, err := io.Copy(io.Discard, res.Body); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("%s, ends with %v, want 200 and a clean end", res.Status, err)
	}
	s.ping(t)
}

// While clients are sent elsewhere, requests are served and streams go on; watches
// end cleanly, and what would be cut off soon is refused with word to try again.
func TestWithdraw(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		t.Run(fmt.Sprintf("HTTP/2: %v", http2), func(t *testing.T) {
			api := newDrainAPI(t)
			withdrawing, withdrawn := make(chan struct{}), make(chan struct{})
			r := start(t, api.apiServer, options{withdraw: func(context.Context, func(context.Context)) error {
				close(withdrawing)
				<-withdrawn
				return nil
			}})
			rest := r.slowGet(t, api, http2)
			w, s := r.watch(t, alice.Addr, http2), r.stream(t, alice.Addr, http.MethodPost, "SPDY/3.1")
			s.ping(t)

			r.stop()
			if err := w.end(t); err != nil {
				t.Errorf("the watch ends with %v, want a clean end", err)
			}
			receive(t, withdrawing, "the call of Withdraw") // closed by it

			res, err := r.client(t, bob.Addr, http2).Do(r.request(t, http.MethodGet, "/api", nil, nil))
			if err != nil {
				t.Fatalf("a request while the server withdraws: %v", err)
			}
			_ = res.Body.Close()
			if res.StatusCode != http.StatusOK || !http2 && !res.Close {
				t.Errorf("a request while the server withdraws: %s, connection closed: %v", res.Status, res.Close)
			}
			for _, path := range []string{"/api/v1/pods?watch=1", "/api/v1/namespaces/a/pods/b/log?follow=true"} {
				res, body := r.get(t, bob.Addr, path, nil)
				if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") != "1" || !strings.Contains(body, "another one will answer") {
					t.Errorf("%s: %s, Retry-After %q: %s", path, res.Status, res.Header.Get("Retry-After"), body)
				}
			}
			s.ping(t)
			close(withdrawn)
			api.release()
			if got := receive(t, rest, "the answer"); got != (answer{http.StatusOK, "finished", nil}) {
				t.Errorf("the request in flight is answered %+v", got)
			}
			_ = s.Close()
			if err := receive(t, r.served, "the end of Serve"); err != nil {
				t.Errorf("Serve returns %v", err)
			}
		})
	}
}

// A drain that ends sessions waits for a recorder that takes its time, and for their lines
// in the log.
func TestDrainWaitsForRecordings(t *testing.T) {
	s := newRecorder(t, false)
	s.confirm = make(chan struct{})
	time.AfterFunc(2*lastWords, func() { close(s.confirm) }) // a slow recorder
	r := start(t, newAPIServer(t, speak), options{drainTimeout: time.Millisecond})
	r.grant(true, s.addr)
	session := r.stream(t, alice.Addr, http.MethodGet, "websocket", "Sec-WebSocket-Protocol: v5.channel.k8s.io")
	if _, err := io.ReadFull(session.read, make([]byte, len(hello))); err != nil {
		t.Fatal(err)
	}
	r.stop()
	if err := receive(t, r.served, "the end of Serve"); err != nil {
		t.Error(err)
	}
	before, _, _ := strings.Cut(r.logs.String(), `"msg":"drained"`)
	if !strings.Contains(before, `"recording":"complete"`) || !strings.Contains(before, `"ended":"draining"`) {
		t.Errorf("before the end of the drain there is no word of the session:\n%s", before)
	}
	if !s.wasWhole() {
		t.Error("the recording is not whole")
	}
}

// Serve ends when nothing is open, however long it might have waited.
func TestDrainOfNothing(t *testing.T) {
	r := start(t, newAPIServer(t, nil), options{})
	if res, _ := r.get(t, alice.Addr, "/api", nil); res.StatusCode != http.StatusOK {
		t.Fatalf("status %s", res.Status)
	}
	r.stop()
	if err := receive(t, r.served, "the end of Serve"); err != nil {
		t.Error(err)
	}
}

// Callers are asked about through the drain: it is no time of grace for somebody
// who was removed.
func TestRevocationInDrain(t *testing.T) {
	api := newDrainAPI(t)
	r := start(t, api.apiServer, options{})
	s := r.stream(t, alice.Addr, http.MethodPost, "SPDY/3.1")
	r.draining(t)
	s.ping(t)
	r.peers.change(func(ids map[netip.Addr]identity.Identity, _ map[netip.Addr]error) { delete(ids, alice.Addr) })
	s.ended(t)
	if err := receive(t, r.served, "the end of Serve"); err != nil {
		t.Error(err)
	}
}

// A listener that fails ends Serve with its error, which names the port.
func TestServeReturnsListenerErrors(t *testing.T) {
	api := newAPIServer(t, nil)
	log, metrics := slog.New(slog.DiscardHandler), NewMetrics(prometheus.NewRegistry())
	proxy, err := New(Config{Mode: ModeAuth, Upstream: api.config(), Peers: newFakePeers(), Log: log, Metrics: metrics})
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t)
	_ = l.Close()
	err = NewServer(ServerConfig{Proxy: proxy, DrainTimeout: patience, Log: log, Metrics: metrics}).Serve(t.Context(), nil, l)
	if err == nil || !strings.Contains(err.Error(), "serving port 80 of the tailnet") {
		t.Errorf("error %v", err)
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// watchAPI answers upgrades with an echo, and everything else with an event for
// each value of events, until the client is gone.
func watchAPI(events <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if isUpgrade(r) {
			echo(w, r)
			return
		}
		for {
			_, _ = io.WriteString(w, "event\n")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-events:
			case <-r.Context().Done():
				return
			}
		}
	}
}

// watch is an open watch of a client.
type watch struct {
	body io.ReadCloser
	read *bufio.Reader
}

// watch opens a watch and reads its first event.
func (r *rig) watch(t *testing.T, addr netip.Addr, http2 bool) *watch {
	t.Helper()
	res, err := r.client(t, addr, http2).Do(r.request(t, http.MethodGet, "/api/v1/pods?watch=1", nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	w := &watch{res.Body, bufio.NewReader(res.Body)}
	w.event(t)
	return w
}

// event reads one event.
func (w *watch) event(t *testing.T) {
	t.Helper()
	if line, err := w.read.ReadString('\n'); line != "event\n" || err != nil {
		t.Fatalf("the watch sends %q, %v", line, err)
	}
}

// end waits for the end of the watch and returns its error, nil for a clean end.
func (w *watch) end(t *testing.T) error {
	t.Helper()
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, w.read)
		ended <- err
	}()
	return receive(t, ended, "the end of the watch")
}

// Open requests of a caller who is not the same any more end. Those of others go on.
func TestRevocation(t *testing.T) {
	grant := &identity.GrantError{Capability: identity.Capability, Err: errors.New("x")}
	changes := map[string]func(map[netip.Addr]identity.Identity, map[netip.Addr]error){
		"removed": func(ids map[netip.Addr]identity.Identity, _ map[netip.Addr]error) { delete(ids, alice.Addr) },
		"expired": func(_ map[netip.Addr]identity.Identity, errs map[netip.Addr]error) {
			errs[alice.Addr] = identity.ErrExpired
		},
		"bad grant": func(_ map[netip.Addr]identity.Identity, errs map[netip.Addr]error) { errs[alice.Addr] = grant },
		"unknowable": func(_ map[netip.Addr]identity.Identity, errs map[netip.Addr]error) {
			errs[alice.Addr] = errors.New("x")
		},
		"fewer groups": func(ids map[netip.Addr]identity.Identity, _ map[netip.Addr]error) {
			id := alice
			id.Groups = []string{"readers"}
			ids[alice.Addr] = id
		},
		"other user": func(ids map[netip.Addr]identity.Identity, _ map[netip.Addr]error) {
			id := alice
			id.User = "mallory@example.com"
			ids[alice.Addr] = id
		},
		"other device": func(ids map[netip.Addr]identity.Identity, _ map[netip.Addr]error) {
			id := alice
			id.NodeID = "n99"
			ids[alice.Addr] = id
		},
	}
	for name, label := range map[string]string{
		"removed": reasonUnknownPeer, "expired": reasonExpired, "bad grant": reasonMalformedGrant, "unknowable": reasonIdentityUnknown,
		"fewer groups": reasonIdentityChanged, "other user": reasonIdentityChanged, "other device": reasonIdentityChanged,
	} {
		for _, mode := range []Mode{ModeAuth, ModeNoAuth} {
			t.Run(fmt.Sprintf("%s, %s", name, mode), func(t *testing.T) {
				events := make(chan struct{})
				r := start(t, newAPIServer(t, watchAPI(events)), options{mode: mode})
				theirs := r.watch(t, bob.Addr, true)
				kept := r.stream(t, bob.Addr, http.MethodGet, "websocket")
				watch2, watch1 := r.watch(t, alice.Addr, true), r.watch(t, alice.Addr, false)
				spdy, websocket := r.stream(t, alice.Addr, http.MethodPost, "SPDY/3.1"), r.stream(t, alice.Addr, http.MethodGet, "websocket")
				spdy.ping(t)
				websocket.ping(t)

				r.peers.change(changes[name])

				for _, w := range []*watch{watch2, watch1} {
					if err := w.end(t); err == nil {
						t.Error("a watch ends as if there were no more events")
					}
				}
				spdy.ended(t)
				websocket.ended(t)
				kept.ping(t)
				events <- struct{}{}
				theirs.event(t)
				for _, line := range r.logs.lines(t, "request", 4) {
					if line["node"] != alice.Node || line["ended"] != label {
						t.Errorf("logged as %v, want the end of a request of %s by %s", line, alice.Node, label)
					}
				}
			})
		}
	}
}

// A change that leaves the caller the same ends nothing.
func TestNoRevocation(t *testing.T) {
	events := make(chan struct{})
	r := start(t, newAPIServer(t, watchAPI(events)), options{})
	w, s := r.watch(t, alice.Addr, true), r.stream(t, alice.Addr, http.MethodPost, "SPDY/3.1")
	asked := func() int {
		r.peers.mu.Lock()
		defer r.peers.mu.Unlock()
		return r.peers.asked
	}
	before := asked()
	r.peers.change(func(ids map[netip.Addr]identity.Identity, _ map[netip.Addr]error) {
		id := alice
		id.Node = "renamed.tail1234.ts.net"
		ids[alice.Addr] = id
		delete(ids, bob.Addr)
	})
	eventually(t, "identity was asked again", func() bool { return asked() > before })
	s.ping(t)
	events <- struct{}{}
	w.event(t)
}

// A request that waits for the API server is told why it ends.
func TestRevocationBeforeTheAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		err   error
		code  int
		label string
	}{
		"removed": {identity.ErrUnknownPeer, http.StatusUnauthorized, reasonUnknownPeer},
		"changed": {nil, http.StatusForbidden, reasonIdentityChanged},
	} {
		t.Run(name, func(t *testing.T) {
			arrived := make(chan struct{})
			api := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) {
				close(arrived)
				<-r.Context().Done()
			})
			r := start(t, api, options{})
			type answer struct {
				res  *http.Response
				body string
			}
			answered := make(chan answer, 1)
			go func() {
				res, body := r.get(t, alice.Addr, "/api/v1/pods", nil)
				answered <- answer{res, body}
			}()
			receive(t, arrived, "the request")
			r.peers.change(func(ids map[netip.Addr]identity.Identity, errs map[netip.Addr]error) {
				errs[alice.Addr] = tc.err
				id := alice
				id.Groups = nil
				ids[alice.Addr] = id
			})
			got := receive(t, answered, "the answer")
			r.checkRefusal(t, got.res, got.body, tc.code, statusOf(t, got.res, got.body).Reason, tc.label, "")
		})
	}
}

// Without word of a change, callers are asked about again all the same.
func TestRecheckWithoutWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers, s := newFakePeers(alice, bob), newCalls()
		go s.watch(t.Context(), peers)
		ended := map[string]error{}
		for _, id := range []identity.Identity{alice, bob} {
			done, f := s.add(&call{addr: id.Addr, caller: id, end: func(cause error) { ended[id.User] = cause }})
			if f != nil {
				t.Fatal("the first call is one too many")
			}
			defer done()
		}
		time.Sleep(10 * recheckInterval)
		synctest.Wait()
		if len(ended) != 0 {
			t.Fatalf("ended without a change: %v", ended)
		}
		peers.mu.Lock()
		delete(peers.answers, alice.Addr) // without a word
		peers.mu.Unlock()
		time.Sleep(recheckInterval)
		synctest.Wait()
		if len(ended) != 1 || !errors.Is(ended[alice.User], identity.ErrUnknownPeer) {
			t.Errorf("ended: %v, want alice's call alone", ended)
		}
	})
}

// A change while callers are asked about is not missed until the next interval.
func TestRecheckAgainAfterAChangeMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		peers, s := newFakePeers(alice, bob), newCalls()
		ended := 0
		done, f := s.add(&call{addr: alice.Addr, caller: alice, end: func(error) { ended++ }})
		if f != nil {
			t.Fatal("the first call is one too many")
		}
		defer done()
		// alice is removed just after she was asked about.
		go s.watch(t.Context(), &meddlingPeers{fakePeers: peers, after: func() {
			peers.change(func(ids map[netip.Addr]identity.Identity, _ map[netip.Addr]error) { delete(ids, alice.Addr) })
		}})
		synctest.Wait()
		begin := time.Now()
		peers.change(func(map[netip.Addr]identity.Identity, map[netip.Addr]error) {})
		synctest.Wait()
		if waited := time.Since(begin); ended == 0 || waited != 0 {
			t.Errorf("ended %d times after %v, want at once", ended, waited)
		}
	})
}

// meddlingPeers call a function after the first answer.
type meddlingPeers struct {
	*fakePeers
	after func()
}

func (p *meddlingPeers) Identify(ctx context.Context, addr netip.Addr) (identity.Identity, error) {
	id, err := p.fakePeers.Identify(ctx, addr)
	if p.after != nil {
		after := p.after
		p.after = nil
		after()
	}
	return id, err
}

// A stream whose call ends is closed to the client, too, whatever became of its
// other side.
func TestStreamIsClosedWithItsCall(t *testing.T) {
	client, server := net.Pipe()
	defer func() { _ = client.Close() }()
	ctx, end := context.WithCancel(t.Context())
	w := &responseWriter{ResponseWriter: hijacked{httptest.NewRecorder(), server}, ctx: ctx}
	if _, _, err := w.Hijack(); err != nil {
		t.Fatal(err)
	}
	end()
	read := make(chan error, 1)
	go func() {
		_, err := client.Read(make([]byte, 1))
		read <- err
	}()
	if err := receive(t, read, "the end of the connection"); !errors.Is(err, io.EOF) {
		t.Errorf("reading ends with %v, want EOF", err)
	}
}

// hijacked is a response whose connection can be taken over.
type hijacked struct {
	http.ResponseWriter
	conn net.Conn
}

func (h hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) { return h.conn, nil, nil }

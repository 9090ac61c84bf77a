// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/sessionrecording"
)

var (
	first  = netip.MustParseAddrPort("100.64.0.8:80")
	second = netip.MustParseAddrPort("100.64.0.9:80")
)

// The first recorder that takes the recording gets it; those that do not are asked last
// from then on, and for recordings that are not enforced not at all if they did not answer.
func TestConnectTakesTheFirstThatAnswers(t *testing.T) {
	full, good := newServer(t, func(s *server) { s.refuse = true }), newServer(t, nil)
	dead := netip.MustParseAddrPort("127.0.0.1:1")
	r := NewRecorders(dialer)
	for _, enforced := range []bool{true, false} {
		rec, err := r.Connect(t.Context(), []netip.AddrPort{dead, full.addr, dead, good.addr}, testSession, enforced)
		if err != nil {
			t.Fatal(err)
		}
		if rec.Recorder() != good.addr {
			t.Errorf("%s has it, want %s", rec.Recorder(), good.addr)
		}
		_ = rec.Finish()
	}
	for enforced, want := range map[bool][]netip.AddrPort{true: {good.addr, dead, full.addr}, false: {good.addr, full.addr}} {
		if got := r.silent.order([]netip.AddrPort{dead, full.addr, good.addr, good.addr}, enforced); !slices.Equal(got, want) {
			t.Errorf("enforced: %v: %v are asked, want %v", enforced, got, want)
		}
	}
}

func TestConnectNamesWhatItTried(t *testing.T) {
	r := NewRecorders(func(_ context.Context, _, address string) (net.Conn, error) {
		return nil, errors.New("no way to " + address)
	})
	_, err := r.Connect(t.Context(), []netip.AddrPort{first, second}, testSession, true)
	var unreachable *UnreachableError
	if !errors.As(err, &unreachable) || !slices.Equal(unreachable.Recorders, []netip.AddrPort{first, second}) {
		t.Fatalf("error %v", err)
	}
	for _, want := range []string{"100.64.0.8:80, 100.64.0.9:80", "no way to 100.64.0.8:80", "no way to 100.64.0.9:80"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error %q does not say %q", err, want)
		}
	}
}

// hang is a dial to what does not answer.
func hang(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// A recorder that does not answer costs attemptTimeout once, and then nothing for a
// while where no recording is enforced.
func TestConnectToSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dialed atomic.Int32
		r := NewRecorders(func(ctx context.Context, network, address string) (net.Conn, error) {
			dialed.Add(1)
			return hang(ctx, network, address)
		})
		connect := func(enforced bool) time.Duration {
			start := time.Now()
			if _, err := r.Connect(t.Context(), []netip.AddrPort{first, second}, testSession, enforced); err == nil {
				t.Fatal("silence is a recorder")
			}
			return time.Since(start)
		}
		if took := connect(false); took != 2*attemptTimeout || dialed.Load() != 2 {
			t.Errorf("it took %s and %d connections", took, dialed.Load())
		}
		if took := connect(false); took != 0 || dialed.Load() != 2 {
			t.Errorf("the second time it took %s and %d connections", took, dialed.Load())
		}
		if took := connect(true); took != 2*attemptTimeout || dialed.Load() != 4 {
			t.Errorf("enforced, it took %s and %d connections", took, dialed.Load())
		}
		time.Sleep(avoidance)
		if connect(false); dialed.Load() != 6 {
			t.Errorf("after a while there were %d connections", dialed.Load())
		}
	})
}

// However many recorders are away, the one that answers gets each session and each event;
// the others cost time once in a while, and nothing that was not asked is taken for away.
func TestDeadRecorders(t *testing.T) {
	dead := func(n int) (list []netip.AddrPort) {
		for i := range n {
			list = append(list, netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, 64, 1, byte(i)}), 80))
		}
		return list
	}
	for _, n := range []int{1, 2, 3, 9} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			inBubble(t, func(w http.ResponseWriter, r *http.Request) {
				acknowledge(w)
				_, _ = io.Copy(io.Discard, r.Body)
			}, func(t *testing.T, r *Recorders) {
				list := append(dead(n), first)
				session := func() error {
					rec, err := r.Connect(t.Context(), list, testSession, true)
					if err != nil {
						return err
					}
					return rec.Finish()
				}
				event := func() error { return r.SendEvent(t.Context(), list, sessionrecording.Event{}, true) }
				for _, tc := range []struct {
					what  string
					begin func() error
					total time.Duration
					away  *silence
				}{{"event", event, eventTimeout, &r.deaf}, {"session", session, connectTimeout, &r.silent}} {
					for _, again := range []bool{false, true, false} {
						start, cost := time.Now(), time.Duration(0)
						if !again {
							cost = time.Duration(n) * share(tc.total, n+1)
						}
						if err := tc.begin(); err != nil || time.Since(start) != cost || cost > tc.total {
							t.Errorf("%s, again: %v: after %s, want %s: %v", tc.what, again, time.Since(start), cost, err)
						}
						if got := tc.away.order(list, true); got[0] != first || !slices.Equal(got[1:], dead(n)) {
							t.Errorf("%s: %v are asked next", tc.what, got)
						}
						if again {
							time.Sleep(avoidance)
						}
					}
				}
			})
		})
	}
}

// Of recorders that did not answer, the one is asked first that may be back.
func TestOrderOfSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s silence
		for _, addr := range []netip.AddrPort{second, first} {
			s.remember(addr, errAvoided)
			time.Sleep(time.Second)
		}
		if got := s.order([]netip.AddrPort{first, second}, true); !slices.Equal(got, []netip.AddrPort{second, first}) {
			t.Errorf("%v are asked", got)
		}
	})
}

// A client that goes while recorders are asked says nothing about them.
func TestConnectCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := NewRecorders(func(ctx context.Context, network, address string) (net.Conn, error) {
		cancel()
		return hang(ctx, network, address)
	})
	if _, err := r.Connect(ctx, []netip.AddrPort{first}, testSession, true); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if got := r.silent.order([]netip.AddrPort{first}, false); len(got) != 1 {
		t.Error("the recorder is avoided")
	}
}

// What listens but is no recorder is not waited for.
func TestConnectToSomethingElse(t *testing.T) {
	s := newServer(t, func(s *server) { s.versions = nil })
	if _, err := NewRecorders(dialer).Connect(t.Context(), []netip.AddrPort{s.addr}, testSession, true); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("error %v", err)
	}
}

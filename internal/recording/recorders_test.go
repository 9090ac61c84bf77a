// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	first  = netip.MustParseAddrPort("100.64.0.8:80")
	second = netip.MustParseAddrPort("100.64.0.9:80")
)

// The first recorder that takes the recording gets it; those that do not are asked last
// from then on, and for recordings that are not enforced not at all.
func TestConnectTakesTheFirstThatAnswers(t *testing.T) {
	full, good := newServer(t, func(s *server) { s.refuse = true }), newServer(t, nil)
	dead := netip.MustParseAddrPort("127.0.0.1:1")
	r := NewRecorders(dialer)
	for _, enforced := range []bool{true, false} {
		rec, err := r.Connect(t.Context(), []netip.AddrPort{dead, full.addr, dead, good.addr}, enforced)
		if err != nil {
			t.Fatal(err)
		}
		if rec.Recorder() != good.addr {
			t.Errorf("%s has it, want %s", rec.Recorder(), good.addr)
		}
		_ = rec.Finish()
	}
	for enforced, want := range map[bool][]netip.AddrPort{true: {good.addr, dead, full.addr}, false: {good.addr}} {
		if got := r.order([]netip.AddrPort{dead, full.addr, good.addr, good.addr}, enforced); !slices.Equal(got, want) {
			t.Errorf("enforced: %v: %v are asked, want %v", enforced, got, want)
		}
	}
}

func TestConnectNamesWhatItTried(t *testing.T) {
	r := NewRecorders(func(_ context.Context, _, address string) (net.Conn, error) {
		return nil, errors.New("no way to " + address)
	})
	_, err := r.Connect(t.Context(), []netip.AddrPort{first, second}, true)
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
			if _, err := r.Connect(t.Context(), []netip.AddrPort{first, second}, enforced); err == nil {
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

// A client that goes while recorders are asked says nothing about them.
func TestConnectCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := NewRecorders(func(ctx context.Context, network, address string) (net.Conn, error) {
		cancel()
		return hang(ctx, network, address)
	})
	if _, err := r.Connect(ctx, []netip.AddrPort{first}, true); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if got := r.order([]netip.AddrPort{first}, false); len(got) != 1 {
		t.Error("the recorder is avoided")
	}
}

// What listens but is no recorder is not waited for.
func TestConnectToSomethingElse(t *testing.T) {
	s := newServer(t, func(s *server) { s.versions = nil })
	if _, err := NewRecorders(dialer).Connect(t.Context(), []netip.AddrPort{s.addr}, true); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("error %v", err)
	}
}

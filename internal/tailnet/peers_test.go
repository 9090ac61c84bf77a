// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/tailcfg"
	"tailscale.com/wgengine/filter"

	"github.com/tailhelm/tailhelm/internal/identity"
)

var peerAddr = netip.MustParseAddr("100.64.0.7")

// fakeTailnet answers WhoIs.
type fakeTailnet struct {
	mu     sync.Mutex
	asked  map[string]int
	answer func(addr string) (*apitype.WhoIsResponse, error)
	filter *filter.Filter
	block  chan struct{} // not nil: questions wait for it
}

func newFakeTailnet(answer func(string) (*apitype.WhoIsResponse, error)) *fakeTailnet {
	return &fakeTailnet{asked: map[string]int{}, answer: answer, filter: &filter.Filter{}}
}

func (f *fakeTailnet) whoIs(ctx context.Context, addr string) (*apitype.WhoIsResponse, error) {
	f.mu.Lock()
	f.asked[addr]++
	answer, block := f.answer, f.block
	f.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return answer(addr)
}

func (f *fakeTailnet) current() *filter.Filter {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.filter
}

// times returns how often it was asked about the peer.
func (f *fakeTailnet) times() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked[peerAddr.String()]
}

func (f *fakeTailnet) set(change func(*fakeTailnet)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// user answers that a device belongs to login.
func user(login string) func(string) (*apitype.WhoIsResponse, error) {
	return func(string) (*apitype.WhoIsResponse, error) {
		return &apitype.WhoIsResponse{
			Node: &tailcfg.Node{Name: "laptop.tail1234.ts.net.", StableID: "n1"}, UserProfile: &tailcfg.UserProfile{LoginName: login},
		}, nil
	}
}

// clock is a time that a test sets.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func newTestPeers(f *fakeTailnet) (*peers, *clock) {
	p, c := newPeers(f.whoIs, f.current), &clock{time.Unix(1000, 0)}
	p.now = c.now
	return p, c
}

func TestPeersKeepAnswers(t *testing.T) {
	f := newFakeTailnet(user("alice@example.com"))
	p, clock := newTestPeers(f)
	for name, step := range []struct {
		change func()
		asked  int
	}{
		{func() {}, 1},
		{func() {}, 1},
		{func() { clock.at = clock.at.Add(answerLifetime - 1) }, 1},
		{func() { clock.at = clock.at.Add(1) }, 2}, // too old
		{func() {}, 2},
		{p.invalidate, 3},
		{func() { f.set(func(f *fakeTailnet) { f.filter = &filter.Filter{} }) }, 4}, // the grants may be others
		{func() {}, 4},
	} {
		step.change()
		id, err := p.identify(t.Context(), peerAddr)
		if err != nil || id.User != "alice@example.com" || id.Addr != peerAddr {
			t.Errorf("step %d: %+v, %v", name, id, err)
		}
		if got := f.times(); got != step.asked {
			t.Errorf("step %d: asked %d times, want %d", name, got, step.asked)
		}
	}
}

// A change shows in the very next answer.
func TestPeersChange(t *testing.T) {
	for name, tell := range map[string]func(*peers, *fakeTailnet){
		"on the IPN bus":       func(p *peers, _ *fakeTailnet) { p.invalidate() },
		"in the packet filter": func(_ *peers, f *fakeTailnet) { f.set(func(f *fakeTailnet) { f.filter = &filter.Filter{} }) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeTailnet(user("alice@example.com"))
			p, _ := newTestPeers(f)
			if _, err := p.identify(t.Context(), peerAddr); err != nil {
				t.Fatal(err)
			}
			f.set(func(f *fakeTailnet) { f.answer = user("mallory@example.com") })
			tell(p, f)
			if id, err := p.identify(t.Context(), peerAddr); err != nil || id.User != "mallory@example.com" {
				t.Errorf("%+v, %v", id, err)
			}
		})
	}
}

func TestPeersRefuse(t *testing.T) {
	expired := func(at time.Time) func(string) (*apitype.WhoIsResponse, error) {
		return func(addr string) (*apitype.WhoIsResponse, error) {
			who, err := user("alice@example.com")(addr)
			who.Node.KeyExpiry = at
			return who, err
		}
	}
	fail := func(err error) func(string) (*apitype.WhoIsResponse, error) {
		return func(string) (*apitype.WhoIsResponse, error) { return nil, err }
	}
	now := time.Unix(1000, 0)
	broken := errors.New("broken pipe")
	for name, tc := range map[string]struct {
		answer func(string) (*apitype.WhoIsResponse, error)
		want   error
		kept   bool
	}{
		"unknown peer":        {fail(local.ErrPeerNotFound), identity.ErrUnknownPeer, true},
		"unknown, wrapped":    {fail(fmt.Errorf("x: %w", local.ErrPeerNotFound)), identity.ErrUnknownPeer, true},
		"no answer":           {func(string) (*apitype.WhoIsResponse, error) { return nil, nil }, identity.ErrUnknownPeer, true}, //nolint:nilnil // what must not panic
		"answer without node": {func(string) (*apitype.WhoIsResponse, error) { return &apitype.WhoIsResponse{}, nil }, identity.ErrUnknownPeer, true},
		"key expired":         {expired(now.Add(-time.Second)), identity.ErrExpired, true},
		"key expires later":   {expired(now.Add(time.Second)), nil, true},
		"key never expires":   {expired(time.Time{}), nil, true},
		"no name":             {user(""), identity.ErrNoName, true},
		"failure":             {fail(broken), broken, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeTailnet(tc.answer)
			p, _ := newTestPeers(f)
			for range 2 {
				id, err := p.identify(t.Context(), peerAddr)
				if !errors.Is(err, tc.want) || err != nil && id.User != "" {
					t.Errorf("%+v, %v, want %v", id, err, tc.want)
				}
			}
			if kept := f.times() == 1; kept != tc.kept {
				t.Errorf("asked %d times", f.times())
			}
		})
	}
}

// A key that ends while its answer is kept is refused when the answer is too old.
func TestPeersNoticeExpiry(t *testing.T) {
	expiry := time.Unix(1001, 0)
	f := newFakeTailnet(func(addr string) (*apitype.WhoIsResponse, error) {
		who, err := user("alice@example.com")(addr)
		who.Node.KeyExpiry = expiry
		return who, err
	})
	p, clock := newTestPeers(f)
	if _, err := p.identify(t.Context(), peerAddr); err != nil {
		t.Fatal(err)
	}
	clock.at = clock.at.Add(answerLifetime)
	if _, err := p.identify(t.Context(), peerAddr); !errors.Is(err, identity.ErrExpired) {
		t.Errorf("error %v", err)
	}
}

// Many requests of one peer ask once, and one that gives up spoils nothing for
// the others.
func TestPeersAskOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeTailnet(user("alice@example.com"))
		f.block = make(chan struct{})
		p, _ := newTestPeers(f)
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		errs := make([]error, 10)
		for i := range errs {
			group.Go(func() { _, errs[i] = p.identify(ctx, peerAddr) })
		}
		synctest.Wait()
		cancel()
		synctest.Wait()
		close(f.block)
		group.Wait()
		for i, err := range errs {
			if err != nil {
				t.Errorf("request %d: %v", i, err)
			}
		}
		if got := f.times(); got != 1 {
			t.Errorf("asked %d times", got)
		}
	})
}

// Who asks after a change is not answered from before it.
func TestPeersAskAgainAfterAChangeMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeTailnet(user("alice@example.com"))
		f.block = make(chan struct{})
		p, _ := newTestPeers(f)
		old := make(chan string, 1)
		go func() {
			id, _ := p.identify(t.Context(), peerAddr)
			old <- id.User
		}()
		synctest.Wait() // the question is under way
		blocked := f.block
		f.set(func(f *fakeTailnet) { f.answer, f.block = user("mallory@example.com"), nil })
		p.invalidate()
		if id, err := p.identify(t.Context(), peerAddr); err != nil || id.User != "mallory@example.com" {
			t.Errorf("after the change: %+v, %v", id, err)
		}
		close(blocked)
		if got := <-old; got != "alice@example.com" {
			t.Errorf("the question from before is answered %q", got)
		}
		// Its late answer must not be used for anybody any more.
		if id, err := p.identify(t.Context(), peerAddr); err != nil || id.User != "mallory@example.com" {
			t.Errorf("after the late answer: %+v, %v", id, err)
		}
	})
}

// A tailnet that does not answer is an error, not a wait without end.
func TestPeersTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeTailnet(nil)
		f.block = make(chan struct{})
		p, _ := newTestPeers(f)
		begin := time.Now()
		_, err := p.identify(t.Context(), peerAddr)
		if took := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || took != whoIsTimeout {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestPeersChanged(t *testing.T) {
	p, _ := newTestPeers(newFakeTailnet(nil))
	first := p.changes()
	select {
	case <-first:
		t.Fatal("changed before a change")
	default:
	}
	p.invalidate()
	<-first
	select {
	case <-p.changes():
		t.Error("the next change has come already")
	default:
	}
}

// Answers do not pile up without end.
func TestPeersAreBounded(t *testing.T) {
	f := newFakeTailnet(user("alice@example.com"))
	p, _ := newTestPeers(f)
	addr := peerAddr
	for range maxAnswers + 10 {
		if _, err := p.identify(t.Context(), addr); err != nil {
			t.Fatal(err)
		}
		addr = addr.Next()
	}
	if got := len(p.answers); got > maxAnswers {
		t.Errorf("%d answers are kept", got)
	}
}

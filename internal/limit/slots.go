// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"context"
	"sync"
)

// Slots bound what is under way at a time: of all peers, and of each, so that one leaves
// something to the others.
type Slots struct {
	all     chan struct{}
	perPeer int

	mu    sync.Mutex
	peers map[string]*peerSlots
}

// peerSlots are those of one peer.
type peerSlots struct {
	taken chan struct{}
	users int // those who wait included; the last one takes it away
}

// NewSlots returns Slots for at most all peers' and each peer's number of things.
func NewSlots(all, perPeer int) *Slots {
	return &Slots{all: make(chan struct{}, all), perPeer: perPeer, peers: map[string]*peerSlots{}}
}

// Acquire waits for a slot of a peer, until ctx is done. release gives it back. The error is
// ctx's. A free slot is given whether ctx is done or not.
func (s *Slots) Acquire(ctx context.Context, peer string) (release func(), err error) {
	p := s.enter(peer)
	if err := take(ctx, p.taken); err != nil {
		s.leave(peer, p)
		return nil, err
	}
	if err := take(ctx, s.all); err != nil {
		<-p.taken
		s.leave(peer, p)
		return nil, err
	}
	return func() {
		<-s.all
		<-p.taken
		s.leave(peer, p)
	}, nil
}

// done is a context that is done.
var done = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// TryAcquire is Acquire that does not wait. It reports whether there was a slot.
func (s *Slots) TryAcquire(peer string) (release func(), ok bool) {
	release, err := s.Acquire(done, peer)
	return release, err == nil
}

// take takes a place in c.
func take(ctx context.Context, c chan struct{}) error {
	select {
	case c <- struct{}{}:
		return nil
	default:
	}
	select {
	case c <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Slots) enter(peer string) *peerSlots {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[peer]
	if p == nil {
		p = &peerSlots{taken: make(chan struct{}, s.perPeer)}
		s.peers[peer] = p
	}
	p.users++
	return p
}

func (s *Slots) leave(peer string, p *peerSlots) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.users--; p.users == 0 {
		delete(s.peers, peer)
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/tailcfg"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// recheckInterval bounds how long an open request outlives a change of its
// caller of which Peers sent no word.
const recheckInterval = time.Second

// maxCallsPerDevice is how many requests one device may have open: more than a
// controller that watches every resource of a large cluster has, and few enough
// that what is held for each of them cannot exhaust the memory.
const maxCallsPerDevice = 2048

// maxRecordedPerDevice is how many sessions that are to be recorded one device may have open:
// a recorder has 250 places for all that come through one proxy.
const maxRecordedPerDevice = 64

// errDrained is why watches and streams end in a drain.
var errDrained = errors.New("the proxy is shutting down")

type callKey struct{}

// withCall returns ctx with c in it: what the request path decided about a
// request travels with the request and nowhere else.
func withCall(ctx context.Context, c *call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

func callFrom(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// calls are the open requests. They can be ended from outside: when their
// caller's identity changes, and in a drain.
type calls struct {
	mu   sync.Mutex
	open map[*call]struct{}
	// perDevice counts the open calls of each device.
	perDevice map[tailcfg.StableNodeID]tally
	draining  bool
	// refused are the kinds of which no further call begins, and what its client is told.
	refused map[Kind]*refusal
	// changed is closed and replaced when a call ends while somebody waits.
	changed chan struct{}
	waiting int
}

// tally counts calls, and those of them that are sessions to be recorded.
type tally struct{ calls, recorded int }

func newCalls() *calls {
	return &calls{open: map[*call]struct{}{}, perDevice: map[tailcfg.StableNodeID]tally{}, refused: map[Kind]*refusal{}, changed: make(chan struct{})}
}

// add registers c and returns the function that removes it, or why there can be no
// such call now.
func (s *calls) add(c *call) (done func(), f *refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.perDevice[c.caller.NodeID].refuse(c); f != nil {
		return nil, f
	}
	if f := s.refused[c.kind]; f != nil {
		return nil, f
	}
	s.tallyLocked(c, 1)
	s.open[c] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.open, c)
		s.tallyLocked(c, -1)
		if s.waiting > 0 {
			close(s.changed)
			s.changed = make(chan struct{})
		}
	}, nil
}

// refuse returns why the device may not have c open too, or nil.
func (n tally) refuse(c *call) *refusal {
	switch {
	case n.calls >= maxCallsPerDevice:
		return refuseTooMany(fmt.Sprintf("This device has %d requests open, which is as many as it may have. Let some end.", n.calls), nil)
	case c.toRecord && n.recorded >= maxRecordedPerDevice:
		return refuseTooMany(fmt.Sprintf("This device has %d recorded sessions open, which is as many as it may have. Let some end.", n.recorded), nil)
	}
	return nil
}

// tallyLocked adds n times c to the calls of its device.
func (s *calls) tallyLocked(c *call, n int) {
	of := s.perDevice[c.caller.NodeID]
	of.calls += n
	if c.toRecord {
		of.recorded += n
	}
	if s.perDevice[c.caller.NodeID] = of; of.calls == 0 {
		delete(s.perDevice, c.caller.NodeID)
	}
}

// recheck asks peers about the callers of all open calls and ends each one whose
// identity is another than it was, or cannot be told.
func (s *calls) recheck(ctx context.Context, peers Peers) {
	now := map[netip.Addr]func(identity.Identity) *refusal{}
	for _, c := range s.list() {
		verdict, ok := now[c.addr]
		if !ok {
			verdict = verdictFor(ctx, peers, c.addr)
			now[c.addr] = verdict
		}
		if f := verdict(c.caller); f != nil {
			c.end(f)
		}
	}
}

// verdictFor asks who is at addr now and returns what that means for a call
// whose caller was known there.
func verdictFor(ctx context.Context, peers Peers, addr netip.Addr) func(was identity.Identity) *refusal {
	is, err := peers.Identify(ctx, addr)
	return func(was identity.Identity) *refusal {
		switch {
		case err != nil:
			return refuseIdentity(err)
		case !is.Equal(was):
			return refuseForbidden(reasonIdentityChanged, "The user or groups of this device have changed. Try again.", nil)
		}
		return nil
	}
}

// list returns the open calls.
func (s *calls) list() []*call {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*call, 0, len(s.open))
	for c := range s.open {
		list = append(list, c)
	}
	return list
}

// watch rechecks whenever peers tells of a change, and every recheckInterval,
// until ctx is done.
func (s *calls) watch(ctx context.Context, peers Peers) {
	tick := time.NewTicker(recheckInterval)
	defer tick.Stop()
	for changed := peers.Changed(); ; {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
		changed = peers.Changed() // before asking: a change meanwhile asks again
		s.recheck(ctx, peers)
	}
}

// wait returns nil when no call of the given kinds is open, or ctx's error.
func (s *calls) wait(ctx context.Context, kinds ...Kind) error {
	return s.waitFor(ctx, func(c *call) bool { return slices.Contains(kinds, c.kind) })
}

// waitFor returns nil when no call is open for which which holds, or ctx's error.
func (s *calls) waitFor(ctx context.Context, which func(*call) bool) error {
	s.mu.Lock()
	s.waiting++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.waiting--
		s.mu.Unlock()
	}()
	for {
		s.mu.Lock()
		changed, n := s.changed, s.countLocked(which)
		s.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// count returns how many calls of the given kinds are open.
func (s *calls) count(kinds ...Kind) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.countLocked(func(c *call) bool { return slices.Contains(kinds, c.kind) })
}

func (s *calls) countLocked(which func(*call) bool) int {
	n := 0
	for c := range s.open {
		if which(c) {
			n++
		}
	}
	return n
}

// endAll ends every open call.
func (s *calls) endAll(cause error) {
	for _, c := range s.list() {
		c.end(cause)
	}
}

// refuse refuses further calls of some kinds with f.
func (s *calls) refuse(f *refusal, kinds ...Kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kind := range kinds {
		s.refused[kind] = f
	}
}

// endWatches lets every watch end, those that are only starting included, as the
// API server's own do: with a clean end of the response, on which clients watch
// again from where they were.
func (s *calls) endWatches() {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	for _, c := range s.list() {
		if c.kind == KindWatch {
			c.body.Load().finish()
		}
	}
}

// watching notes the body of a watch's response, and ends it if a drain has
// begun meanwhile. It returns the body to send.
func (s *calls) watching(c *call, body io.ReadCloser) io.ReadCloser {
	b := &watchBody{ReadCloser: body}
	c.body.Store(b)
	s.mu.Lock()
	draining := s.draining
	s.mu.Unlock()
	if draining {
		b.finish()
	}
	return b
}

// watchBody is the body of a watch's response. It can be finished from outside.
type watchBody struct {
	io.ReadCloser
	finished atomic.Bool
}

// finish makes the body end as if the API server had ended it. A nil body is one
// whose response has not begun.
func (b *watchBody) finish() {
	if b != nil {
		b.finished.Store(true)
		_ = b.Close() // ends a Read that is waiting
	}
}

// ended says whether finish ended the body. It is false of a nil body.
func (b *watchBody) ended() bool { return b != nil && b.finished.Load() }

func (b *watchBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && b.ended() {
		return n, io.EOF
	}
	return n, err
}

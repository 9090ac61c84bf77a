// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"tailscale.com/client/local"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/util/mak"
	"tailscale.com/wgengine/filter"

	"github.com/tailhelm/tailhelm/internal/identity"
)

const (
	// answerLifetime bounds how long an answer is used when nothing tells of a
	// change, as nothing does when a node key expires.
	answerLifetime = 2 * time.Second
	// whoIsTimeout bounds the question itself, which is answered from memory.
	whoIsTimeout = 5 * time.Second
	// maxAnswers bounds the memory for answers. A tailnet's active peers fit.
	maxAnswers = 10_000
)

// peers answers who is at an address, and keeps answers while the tailnet does
// not change.
type peers struct {
	whoIs func(ctx context.Context, addr string) (*apitype.WhoIsResponse, error)
	// filter returns the node's current packet filter. Grants are part of it, and
	// it is replaced as a whole, so its pointer is its version.
	filter func() *filter.Filter
	now    func() time.Time
	flight singleflight.Group

	mu      sync.Mutex
	answers map[netip.Addr]answer
	version uint64
	changed chan struct{}
}

// answer is what was known of an address, and when that was so.
type answer struct {
	id      identity.Identity
	err     error
	version uint64
	filter  *filter.Filter
	at      time.Time
}

func newPeers(whoIs func(context.Context, string) (*apitype.WhoIsResponse, error), current func() *filter.Filter) *peers {
	return &peers{whoIs: whoIs, filter: current, now: time.Now, answers: map[netip.Addr]answer{}, changed: make(chan struct{})}
}

// whoIs asks Tailscale's code who is at addr, and what it may do here. Grants
// count that name this node as their destination, and those that name its Service.
func (n *Node) whoIs(ctx context.Context, addr string) (*apitype.WhoIsResponse, error) {
	who, err := n.client.WhoIs(ctx, addr)
	if err != nil || n.service == nil {
		return who, err
	}
	via, err := n.client.WhoIsForService(ctx, addr, n.service.name)
	if err != nil {
		return nil, err
	}
	for capability, values := range via.CapMap {
		mak.Set(&who.CapMap, capability, append(who.CapMap[capability], values...))
	}
	return who, nil
}

// identify returns who is at addr.
func (p *peers) identify(ctx context.Context, addr netip.Addr) (identity.Identity, error) {
	current := p.filter()
	p.mu.Lock()
	known, ok := p.answers[addr]
	version := p.version
	p.mu.Unlock()
	if ok && known.version == version && known.filter == current && p.now().Sub(known.at) < answerLifetime {
		return known.id, known.err
	}
	// Many requests of one peer ask once. The version is part of the key, so that a
	// question asked before a change is not answered to those who ask after it.
	result, err, _ := p.flight.Do(fmt.Sprintf("%s %d %p", addr, version, current), func() (any, error) {
		return p.ask(context.WithoutCancel(ctx), addr, version, current)
	})
	if err != nil {
		return identity.Identity{}, err
	}
	return result.(identity.Identity), nil //nolint:forcetypeassert // ask returns nothing else
}

// ask asks the tailnet, and keeps the answer if it is one. version and current
// were read before asking: a change while asking makes the answer stale at once.
func (p *peers) ask(ctx context.Context, addr netip.Addr, version uint64, current *filter.Filter) (identity.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, whoIsTimeout)
	defer cancel()
	at := p.now()
	who, err := p.whoIs(ctx, addr.String())
	if err != nil && !errors.Is(err, local.ErrPeerNotFound) {
		return identity.Identity{}, fmt.Errorf("asking the tailnet who is at %s: %w", addr, err)
	}
	a := answer{version: version, filter: current, at: at}
	if err == nil && who != nil && who.Node != nil && !who.Node.KeyExpiry.IsZero() && who.Node.KeyExpiry.Before(at) {
		a.err = identity.ErrExpired
	} else {
		a.id, a.err = identity.FromWhoIs(addr, who)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.answers) >= maxAnswers {
		clear(p.answers)
	}
	p.answers[addr] = a
	return a.id, a.err
}

// invalidate makes every answer stale and tells those who wait for changes.
func (p *peers) invalidate() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.version++
	clear(p.answers)
	close(p.changed)
	p.changed = make(chan struct{})
}

// changes returns a channel that is closed at the next invalidate.
func (p *peers) changes() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

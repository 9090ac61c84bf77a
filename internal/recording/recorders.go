// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// attemptTimeout bounds the attempt to reach one recorder, connectTimeout the
	// attempts to reach any.
	attemptTimeout = 5 * time.Second
	connectTimeout = 15 * time.Second
	// avoidance is how long a recorder that did not answer is asked last, or not at all
	// for sessions that need not be recorded.
	avoidance = 30 * time.Second
)

// Dial connects to a recorder. The network is "tcp", the address that of the recorder.
type Dial = func(ctx context.Context, network, address string) (net.Conn, error)

// Recorders connects to recorders, and remembers which of them did not answer.
type Recorders struct {
	dial Dial
	now  func() time.Time
	// events is for events, offered holds those that need not be recorded.
	events  *http.Transport
	offered chan struct{}

	mu     sync.Mutex
	silent map[netip.AddrPort]time.Time // when a recorder did not answer
}

// NewRecorders returns a Recorders that reaches them by dial.
func NewRecorders(dial Dial) *Recorders {
	return &Recorders{
		dial: dial, now: time.Now, silent: map[netip.AddrPort]time.Time{},
		events: newEventTransport(dial), offered: make(chan struct{}, maxEvents),
	}
}

// UnreachableError means that none of the recorders takes a recording.
type UnreachableError struct {
	// Recorders are all that there are.
	Recorders []netip.AddrPort
	// Err says what became of each attempt.
	Err error
}

// Error names the recorders and what became of each attempt.
func (e *UnreachableError) Error() string {
	return fmt.Sprintf("no recorder of %s takes the recording: %v", List(e.Recorders), e.Err)
}

// Unwrap returns the errors of the attempts.
func (e *UnreachableError) Unwrap() error { return e.Err }

// List names recorders in a sentence.
func List(recorders []netip.AddrPort) string {
	names := make([]string, len(recorders))
	for i, r := range recorders {
		names[i] = r.String()
	}
	return strings.Join(names, ", ")
}

// errAvoided is why a recorder was not asked.
var errAvoided = errors.New("none of them has answered lately")

// Connect connects to the first of the recorders that answers, within connectTimeout.
// Its error is an [*UnreachableError], or ctx's. An enforced recording asks all of them;
// one that is not, only those that have answered lately. The recording outlives ctx and
// must be finished.
func (r *Recorders) Connect(ctx context.Context, recorders []netip.AddrPort, enforced bool) (*Recording, error) {
	connecting, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var errs []error
	for _, addr := range r.order(recorders, enforced) {
		u, err := r.attempt(connecting, addr)
		if ctx.Err() != nil {
			if err == nil {
				u.abort(ctx.Err())
			}
			return nil, ctx.Err()
		}
		r.remember(addr, err)
		if err == nil {
			return newRecording(addr, u, enforced), nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		errs = append(errs, errAvoided)
	}
	return nil, &UnreachableError{Recorders: recorders, Err: errors.Join(errs...)}
}

// order returns the recorders to ask, each once: those that did not answer lately last,
// or not at all.
func (r *Recorders) order(recorders []netip.AddrPort, enforced bool) []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	var first, last []netip.AddrPort
	for _, addr := range recorders {
		switch at, silent := r.silent[addr]; {
		case slices.Contains(first, addr) || slices.Contains(last, addr):
		case silent && r.now().Sub(at) < avoidance:
			last = append(last, addr)
		default:
			first = append(first, addr)
		}
	}
	if enforced {
		return append(first, last...)
	}
	return first
}

// remember notes whether a recorder has answered, and forgets what no longer counts.
func (r *Recorders) remember(addr netip.AddrPort, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.silent, addr)
	for other, at := range r.silent {
		if r.now().Sub(at) >= avoidance {
			delete(r.silent, other)
		}
	}
	if err != nil {
		r.silent[addr] = r.now()
	}
}

// attempt connects to one recorder. The upload outlives ctx.
func (r *Recorders) attempt(ctx context.Context, addr netip.AddrPort) (upload, error) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	attempting, stop := context.WithTimeout(ctx, attemptTimeout)
	defer stop()
	detach := context.AfterFunc(attempting, cancel)
	u, err := r.start(life, addr)
	if !detach() && err == nil {
		u.abort(attempting.Err())
		err = attempting.Err()
	}
	if err != nil {
		cancel()
		return upload{}, fmt.Errorf("recorder %s: %w", addr, err)
	}
	end := u.cancel
	u.cancel = func() { end(); cancel() }
	return u, nil
}

// dialOnce returns a dial that fails at once after it has failed: the older version of
// the protocol is tried, on another connection, when the newer one gets no answer.
func (r *Recorders) dialOnce() Dial {
	var mu sync.Mutex
	var failed error
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if failed != nil {
			return nil, failed
		}
		conn, err := r.dial(ctx, network, address)
		failed = err
		return conn, err
	}
}

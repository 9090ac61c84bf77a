// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tailhelm/tailhelm/internal/limit"
)

const (
	// attemptTimeout bounds the attempt to reach one recorder, connectTimeout the
	// attempts to reach any: see share.
	attemptTimeout = 5 * time.Second
	connectTimeout = 15 * time.Second
	// avoidance is how long a recorder that took nothing is asked last, or not at all for what
	// need not be recorded if it did not answer.
	avoidance = 30 * time.Second
)

// Dial connects to a recorder. The network is "tcp", the address that of the recorder.
type Dial = func(ctx context.Context, network, address string) (net.Conn, error)

// Recorders connects to recorders, and remembers which of them took nothing.
type Recorders struct {
	dial Dial
	// silent are those that took no session, deaf those that took no event.
	silent, deaf silence
	// events is for events. sent bounds those that are being sent, offered those that need
	// not be recorded.
	events        *http.Transport
	sent, offered *limit.Slots
}

// NewRecorders returns a Recorders that reaches them by dial.
func NewRecorders(dial Dial) *Recorders {
	return &Recorders{
		dial: dial, events: newEventTransport(dial),
		sent: limit.NewSlots(maxSent, maxSentPerDevice), offered: limit.NewSlots(maxOffered, maxOfferedPerDevice),
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

// share returns how long each of n recorders may take to answer, so that the last one is
// asked within total, too, when the others are silent.
func share(total time.Duration, n int) time.Duration {
	return min(attemptTimeout, total/time.Duration(max(1, n)))
}

// Connect has the first of the recorders that answers record a session. It returns when
// that has the first line of the recording: over WebSocket, a command runs with the
// request that asks for it, whatever the client does then. Where the protocol has no
// acknowledgements, the line was sent; likewise if the recording is not enforced.
//
// Connect's error is a [*HeaderTooLongError], an [*UnreachableError], or ctx's. An
// enforced recording asks all of the recorders; one that is not, only those that have
// answered lately, be it with a refusal. The recording outlives ctx and must be finished.
func (r *Recorders) Connect(ctx context.Context, recorders []netip.AddrPort, s Session, enforced bool) (*Recording, error) {
	start := time.Now()
	head, err := s.head(start)
	if err != nil {
		return nil, err
	}
	var errs []error
	asked := r.silent.order(recorders, enforced)
	for _, addr := range asked {
		u, err := r.attempt(ctx, addr, share(connectTimeout, len(asked)), head, enforced)
		if ctx.Err() != nil {
			if err == nil {
				u.abort(ctx.Err())
			}
			return nil, ctx.Err()
		}
		r.silent.remember(addr, err)
		if err == nil {
			return newRecording(addr, u, s, start, enforced), nil
		}
		errs = append(errs, err)
	}
	return nil, unreachable(recorders, errs)
}

// unreachable returns what became of the attempts.
func unreachable(recorders []netip.AddrPort, attempts []error) error {
	if len(attempts) == 0 {
		attempts = []error{errAvoided}
	}
	return &UnreachableError{Recorders: recorders, Err: errors.Join(attempts...)}
}

// silence remembers which recorders took nothing. Its zero value knows of none.
type silence struct {
	mu    sync.Mutex
	since map[netip.AddrPort]lapse
}

// lapse is when a recorder took nothing, and whether it said so.
type lapse struct {
	at      time.Time
	refused bool
}

// order returns the recorders to ask, each once: those that took nothing lately last, the
// longest ago first. Where nothing is enforced, those that did not answer are left out. One
// that refused says so at once, and what it had no room for may have been one sender's.
func (s *silence) order(recorders []netip.AddrPort, enforced bool) []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	var first, last []netip.AddrPort
	for _, addr := range recorders {
		switch then, known := s.since[addr]; {
		case slices.Contains(first, addr) || slices.Contains(last, addr):
		case !known || time.Since(then.at) >= avoidance:
			first = append(first, addr)
		case enforced || then.refused:
			last = append(last, addr)
		}
	}
	slices.SortStableFunc(last, func(a, b netip.AddrPort) int { return s.since[a].at.Compare(s.since[b].at) })
	return append(first, last...)
}

// remember notes whether a recorder took something, and forgets what no longer counts.
func (s *silence) remember(addr netip.AddrPort, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.since, func(other netip.AddrPort, then lapse) bool { return other == addr || time.Since(then.at) >= avoidance })
	if err == nil {
		return
	}
	if s.since == nil {
		s.since = map[netip.AddrPort]lapse{}
	}
	s.since[addr] = lapse{at: time.Now(), refused: errors.Is(err, errRefused)}
}

// attempt begins a recording at one recorder, which has to answer within timeout. The
// upload outlives ctx.
func (r *Recorders) attempt(ctx context.Context, addr netip.AddrPort, timeout time.Duration, head []byte, enforced bool) (upload, error) {
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	attempting, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	detach := context.AfterFunc(attempting, cancel)
	u, err := r.start(life, addr, len(head))
	if !detach() && err == nil {
		u.abort(attempting.Err())
		err = attempting.Err()
	}
	if err == nil {
		if err = u.introduce(ctx, head, enforced); err != nil {
			u.abort(err)
		}
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

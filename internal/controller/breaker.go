// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"sync"
	"time"

	"github.com/tailhelm/tailhelm/internal/tailapi"
)

// errNoAPI is the error of every call when the operator has no credentials.
var errNoAPI = &tailapi.Error{
	Action: "using the Tailscale API", Kind: tailapi.KindCredentials,
	Err:  errors.New("the operator has none but an auth key"),
	Hint: "ProxyGroups and Recorders need an OAuth client or a workload identity with the write scopes auth_keys, devices:core and services: set the chart's value oauth",
}

// maxRetryAfter is how long one answer of the API can keep everything from being tried
// again.
const maxRetryAfter = 15 * time.Minute

// breaker is a circuit breaker on the way to the Tailscale API. An error that other calls
// would meet as well trips it for a while, whoever asks: events in the cluster must not make
// more calls than the API allows.
type breaker struct {
	api    *tailapi.Client // nil: none
	timing timing

	mu       sync.Mutex
	until    time.Time
	err      error
	failures int
	trips    int       // how often it has tripped
	answered time.Time // when it last did what was asked, or zero since it failed for all
}

// do calls f with the API, or returns why it was not called.
func (b *breaker) do(f func(*tailapi.Client) error) error {
	if b.api == nil {
		return errNoAPI
	}
	b.mu.Lock()
	tripped, err, trips := time.Now().Before(b.until), b.err, b.trips
	b.mu.Unlock()
	if tripped {
		return err
	}
	err = f(b.api)
	b.note(err, trips)
	return err
}

// note decides by an answer whether the breaker trips. trips is how often it had when the
// call began: a call that was under way when another one tripped it neither resets it nor
// makes its time shorter, because what it met was earlier.
func (b *breaker) note(err error, trips int) {
	var e *tailapi.Error
	b.mu.Lock()
	defer b.mu.Unlock()
	if !errors.As(err, &e) {
		if err == nil && b.trips == trips {
			b.failures, b.until, b.answered = 0, time.Time{}, time.Now()
		}
		return
	}
	wait := min(e.RetryAfter, maxRetryAfter)
	switch e.Kind {
	case tailapi.KindRateLimited:
		if wait == 0 {
			wait = b.timing.refused
		}
	case tailapi.KindUnavailable:
		// It may be no answer of the API at all, so its wish is not worth more than ours.
		wait = min(max(wait, b.timing.backoff<<min(b.failures, 10)), b.timing.backoffMax)
		b.failures++
	case tailapi.KindCredentials:
		// Credentials may be replaced at any moment; asking is cheap.
		wait = min(b.timing.refused, 10*b.timing.backoff)
	default:
		return
	}
	until := time.Now().Add(wait)
	if until.Before(b.until) {
		return
	}
	// For all callers: what this one wanted is not their business.
	shared := *e
	shared.Action = "using the Tailscale API"
	b.until, b.err, b.answered = until, &shared, time.Time{}
	b.trips++
}

// hasAnswered reports whether the API has done what somebody asked within d, and has not
// failed for all since.
func (b *breaker) hasAnswered(d time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.answered.IsZero() && time.Since(b.answered) < d
}

// after returns when to try again what failed with err.
func (b *breaker) after(err error) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if left := time.Until(b.until); left > 0 {
		return left
	}
	var e *tailapi.Error
	if errors.As(err, &e) && e.Kind == tailapi.KindUnavailable {
		return b.timing.backoff
	}
	return b.timing.refused
}

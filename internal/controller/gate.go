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

// gate is the way to the Tailscale API. After an error that other calls would meet as
// well it stays shut for a while, whoever asks: events in the cluster must not make
// more calls than the API allows.
type gate struct {
	api    *tailapi.Client // nil: none
	timing timing

	mu       sync.Mutex
	until    time.Time
	err      error
	failures int
	shuts    int       // how often it was shut
	answered time.Time // when it last did what was asked, or zero since it failed for all
}

// do calls f with the API, or returns why it was not called.
func (g *gate) do(f func(*tailapi.Client) error) error {
	if g.api == nil {
		return errNoAPI
	}
	g.mu.Lock()
	shut, err, shuts := time.Now().Before(g.until), g.err, g.shuts
	g.mu.Unlock()
	if shut {
		return err
	}
	err = f(g.api)
	g.note(err, shuts)
	return err
}

// note decides by an answer whether the gate is shut. shuts is how often it had been when
// the call began: a call that was under way when another one shut the gate neither opens it
// nor makes its time shorter, because what it met was earlier.
func (g *gate) note(err error, shuts int) {
	var e *tailapi.Error
	g.mu.Lock()
	defer g.mu.Unlock()
	if !errors.As(err, &e) {
		if err == nil && g.shuts == shuts {
			g.failures, g.until, g.answered = 0, time.Time{}, time.Now()
		}
		return
	}
	wait := min(e.RetryAfter, maxRetryAfter)
	switch e.Kind {
	case tailapi.KindRateLimited:
		if wait == 0 {
			wait = g.timing.refused
		}
	case tailapi.KindUnavailable:
		// It may be no answer of the API at all, so its wish is not worth more than ours.
		wait = min(max(wait, g.timing.backoff<<min(g.failures, 10)), g.timing.backoffMax)
		g.failures++
	case tailapi.KindCredentials:
		// Credentials may be replaced at any moment; asking is cheap.
		wait = min(g.timing.refused, 10*g.timing.backoff)
	default:
		return
	}
	until := time.Now().Add(wait)
	if until.Before(g.until) {
		return
	}
	// For all callers: what this one wanted is not their business.
	shared := *e
	shared.Action = "using the Tailscale API"
	g.until, g.err, g.answered = until, &shared, time.Time{}
	g.shuts++
}

// hasAnswered reports whether the API has done what somebody asked within d, and has not
// failed for all since.
func (g *gate) hasAnswered(d time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.answered.IsZero() && time.Since(g.answered) < d
}

// after returns when to try again what failed with err.
func (g *gate) after(err error) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if left := time.Until(g.until); left > 0 {
		return left
	}
	var e *tailapi.Error
	if errors.As(err, &e) && e.Kind == tailapi.KindUnavailable {
		return g.timing.backoff
	}
	return g.timing.refused
}

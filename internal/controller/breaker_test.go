// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tailhelm/tailhelm/internal/tailapi"
)

// TestBreakerTripsForAWhile: an answer trips the breaker for as long as it asks for, but not for ever.
func TestBreakerTripsForAWhile(t *testing.T) {
	for name, c := range map[string]struct {
		kind              tailapi.Kind
		asks, most, least time.Duration
	}{
		"rate limited":                 {tailapi.KindRateLimited, 5 * time.Minute, 5 * time.Minute, 4 * time.Minute},
		"rate limited, without a time": {tailapi.KindRateLimited, 0, usual.refused, usual.refused - time.Second},
		"rate limited for a day":       {tailapi.KindRateLimited, 24 * time.Hour, maxRetryAfter, maxRetryAfter - time.Minute},
		"unavailable for a day":        {tailapi.KindUnavailable, 24 * time.Hour, usual.backoffMax, usual.backoffMax - time.Second},
		"unavailable":                  {tailapi.KindUnavailable, 0, usual.backoff, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := &breaker{api: &tailapi.Client{}, timing: usual}
			no := errors.New("no")
			failure := &tailapi.Error{Action: "reading Tailscale Service svc:mine", Kind: c.kind, RetryAfter: c.asks, Err: no}
			if err := b.do(func(*tailapi.Client) error { return failure }); !errors.Is(err, failure) {
				t.Fatalf("the first call: %v", err)
			}
			if err := b.do(func(*tailapi.Client) error { t.Error("the breaker lets a call through"); return nil }); !errors.Is(err, no) || strings.Contains(err.Error(), "svc:mine") {
				t.Errorf("the second call: %v, want the first one's error without what it was about", err)
			}
			if wait := b.after(failure); wait > c.most || wait < c.least {
				t.Errorf("tripped for %s, want %s to %s", wait, c.least, c.most)
			}
		})
	}
}

// TestBreakerStaysForCallsUnderWay: what a call met that began before the breaker tripped neither
// resets it nor makes its time shorter; what a later one meets does reset it.
func TestBreakerStaysForCallsUnderWay(t *testing.T) {
	limited := &tailapi.Error{Kind: tailapi.KindRateLimited, RetryAfter: 5 * time.Minute, Err: errors.New("slow down")}
	away := &tailapi.Error{Kind: tailapi.KindUnavailable, Err: errors.New("away")}
	for name, late := range map[string]error{"succeeds": nil, "is limited for less": &tailapi.Error{Kind: tailapi.KindRateLimited, RetryAfter: time.Second}, "fails": away} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &breaker{api: &tailapi.Client{}, timing: usual}
				answer := func(err error) func(*tailapi.Client) error { return func(*tailapi.Client) error { return err } }
				err := b.do(func(*tailapi.Client) error { // one group's call, and during it another's
					if err := b.do(answer(limited)); !errors.Is(err, limited) {
						t.Errorf("the other call: %v", err)
					}
					return late
				})
				if !errors.Is(err, late) {
					t.Errorf("the call under way: %v", err)
				}
				time.Sleep(5*time.Minute - time.Second)
				if err := b.do(answer(nil)); err == nil || !strings.Contains(err.Error(), "slow down") {
					t.Errorf("before the time that the API asked for: %v, want that it has tripped", err)
				}
				time.Sleep(time.Second)
				if err := b.do(answer(nil)); err != nil {
					t.Errorf("after it: %v", err)
				}
				_ = b.do(answer(away))
				if wait := b.after(away); wait != usual.backoff {
					t.Errorf("after a success, the first failure trips the breaker for %v, want %v", wait, usual.backoff)
				}
			})
		})
	}
}

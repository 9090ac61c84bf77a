// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/tailhelm/tailhelm/internal/tailapi"
)

// TestGateIsShutForAWhile: an answer shuts the gate as long as it asks for, but not for ever.
func TestGateIsShutForAWhile(t *testing.T) {
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
			g := &gate{api: &tailapi.Client{}, timing: usual}
			no := errors.New("no")
			failure := &tailapi.Error{Action: "reading Tailscale Service svc:mine", Kind: c.kind, RetryAfter: c.asks, Err: no}
			if err := g.do(func(*tailapi.Client) error { return failure }); !errors.Is(err, failure) {
				t.Fatalf("the first call: %v", err)
			}
			if err := g.do(func(*tailapi.Client) error { t.Error("the gate is open"); return nil }); !errors.Is(err, no) || strings.Contains(err.Error(), "svc:mine") {
				t.Errorf("the second call: %v, want the first one's error without what it was about", err)
			}
			if wait := g.after(failure); wait > c.most || wait < c.least {
				t.Errorf("shut for %s, want %s to %s", wait, c.least, c.most)
			}
		})
	}
}

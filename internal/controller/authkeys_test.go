// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestMayMint: when a replica gets its next auth key, by what its config Secret tells.
func TestMayMint(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	f := &fleet{operator: &operator{config: Config{timing: usual}}}
	const day = 24 * time.Hour
	every, most := usual.keyEvery, keyBurst*usual.keyEvery
	for name, c := range map[string]struct {
		minted, budget time.Duration // from now on
		wait           time.Duration // 0: it may have one now
	}{
		"a day ago":                        {-day, -day, 0},
		"just now":                         {0, every, usual.reissue},
		"a second ago, the last of many":   {-time.Second, most, every},
		"some minutes ago, many":           {-4 * time.Minute, most - 4*time.Minute, every - 4*time.Minute},
		"a clock was ahead":                {day, day + every, 0},
		"a clock was ahead, many":          {day, day + most, 0},
		"a clock was ahead for a moment":   {time.Second, every, 0},
		"a clock was a minute ahead, many": {time.Minute, most + time.Minute, 0},
	} {
		config := &corev1.Secret{}
		annotate(config, annotationKeyMinted, now.Add(c.minted).Format(time.RFC3339Nano))
		annotate(config, annotationKeyBudget, now.Add(c.budget).Format(time.RFC3339Nano))
		at, full := f.mayMint(config, now)
		if wait := max(at.Sub(now), 0); wait != c.wait {
			t.Errorf("%s: the next key in %v, want %v", name, wait, c.wait)
		}
		if c.wait == 0 && full.Sub(now) > most {
			t.Errorf("%s: all keys again in %v, more than %v", name, full.Sub(now), most)
		}
	}
}

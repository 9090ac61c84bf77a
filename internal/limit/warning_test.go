// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// The first occurrence is told at once, and further ones together a while later.
func TestWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w Warning
		var got []int
		for _, pause := range []time.Duration{0, 0, warnInterval - time.Nanosecond, time.Nanosecond, 0, 2 * warnInterval} {
			time.Sleep(pause)
			got = append(got, w.Occurred())
		}
		if want := []int{1, 0, 0, 3, 0, 2}; !slices.Equal(got, want) {
			t.Errorf("told of %v occurrences, want %v", got, want)
		}
	})
}

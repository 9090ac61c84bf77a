// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"slices"
	"testing"
)

// figures are one figure of each round, by the name of the way.
type figures map[string][]float64

// add adds a round's figure.
func (f figures) add(w *way, figure float64) { f[w.name] = append(f[w.name], figure) }

// report reports the medians, and those of tailhelm's ratios to the other ways.
func (f figures) report(b *testing.B, figure, unit string) {
	b.Helper()
	for name, rounds := range f {
		b.ReportMetric(median(rounds), name+"-"+figure+"-"+unit)
		if name == "tailhelm" {
			continue
		}
		var ratios []float64
		for i, base := range rounds {
			ratios = append(ratios, f["tailhelm"][i]/base)
		}
		b.ReportMetric(median(ratios), "tailhelm/"+name+"-"+figure)
	}
	b.ReportMetric(0, "ns/op") // the time of a round of all ways says nothing: leave it out
}

// median is the middle one, or the mean of the two in the middle.
func median(of []float64) float64 {
	of = slices.Sorted(slices.Values(of))
	n := len(of)
	return (of[(n-1)/2] + of[n/2]) / 2
}

// turns returns the elements in another order each round: each is as often first as the others.
func turns[T any](of []T, round int) []T {
	n := round % len(of)
	return append(slices.Clone(of[n:]), of[:n]...)
}

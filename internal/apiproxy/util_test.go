// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/util/wait"
)

func pemOf(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

var uuidPattern = regexp.MustCompile("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")

func isUUID(s string) bool { return uuidPattern.MatchString(s) }

// series is one time series of a metric. The value of a histogram is how often it
// was observed.
type series struct {
	labels map[string]string
	value  float64
}

func gather(t *testing.T, registry *prometheus.Registry, name string) []series {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var all []series
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			s := series{map[string]string{}, m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())}
			for _, pair := range m.GetLabel() {
				s.labels[pair.GetName()] = pair.GetValue()
			}
			all = append(all, s)
		}
	}
	return all
}

// metric returns the value of the series with the given labels (name, value,
// ...), or 0 when there is none.
func metric(t *testing.T, registry *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	want := map[string]string{}
	for i := 0; i < len(labels); i += 2 {
		want[labels[i]] = labels[i+1]
	}
	for _, s := range gather(t, registry, name) {
		if maps.Equal(s.labels, want) {
			return s.value
		}
	}
	return 0
}

// labelValues returns the values that a label of a metric has, sorted.
func labelValues(t *testing.T, registry *prometheus.Registry, name, label string) []string {
	t.Helper()
	seen := map[string]bool{}
	for _, s := range gather(t, registry, name) {
		seen[s.labels[label]] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// receive returns the next value of c.
func receive[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	select {
	case v := <-c:
		return v
	case <-ctx.Done():
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

// eventually waits until condition holds. It is for the few conditions that
// nothing tells of: a listener that is gone, a gauge.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	if err := wait.PollUntilContextTimeout(t.Context(), time.Millisecond, patience, true, func(context.Context) (bool, error) {
		return condition(), nil
	}); err != nil {
		t.Fatalf("waited in vain until %s", what)
	}
}

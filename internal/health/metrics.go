// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	failingDesc = prometheus.NewDesc("tailhelm_check_failing", "1 while the readiness check fails.", []string{"check"}, nil)
	warningDesc = prometheus.NewDesc("tailhelm_check_warning", "1 while the readiness check holds, but may soon not.", []string{"check"}, nil)
)

// Collector collects the results of checks. They run once for each scrape.
type Collector struct {
	ready  *prometheus.Desc
	checks []Check
}

// NewCollector returns a Collector of checks. The gauge that says whether all hold is
// called ready, and described by help.
func NewCollector(ready, help string, checks ...Check) *Collector {
	return &Collector{ready: prometheus.NewDesc(ready, help, nil, nil), checks: checks}
}

// Describe implements [prometheus.Collector].
func (c *Collector) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{c.ready, failingDesc, warningDesc} {
		descs <- desc
	}
}

// Collect implements [prometheus.Collector].
func (c *Collector) Collect(metrics chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, is bool, labels ...string) {
		value := 0.0
		if is {
			value = 1
		}
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	ready := true
	for i, r := range Run(context.Background(), c.checks...) {
		gauge(failingDesc, r.Failure != nil, c.checks[i].Name)
		gauge(warningDesc, r.Warning != nil, c.checks[i].Name)
		ready = ready && r.Failure == nil
	}
	gauge(c.ready, ready)
}

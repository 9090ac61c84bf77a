// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tailhelm/tailhelm/internal/identity"
	"github.com/tailhelm/tailhelm/internal/limit"
)

// Metrics are the proxy's Prometheus metrics.
type Metrics struct {
	requests       *prometheus.CounterVec
	latency        *prometheus.HistogramVec
	inFlight       *prometheus.GaugeVec
	refusals       *prometheus.CounterVec
	impersonations *prometheus.CounterVec
	recordings     *prometheus.CounterVec
	events         *prometheus.CounterVec
	connections    *limit.ConnectionMetrics
}

// NewMetrics returns the metrics, registered in r. It panics when r has metrics
// of these names already.
func NewMetrics(r prometheus.Registerer) *Metrics {
	const namespace, subsystem = "tailhelm", "apiproxy"
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "requests_total",
			Help: "Requests answered, by Kubernetes verb, HTTP status code and kind (rest, watch, stream). Code 499: the client went away before the answer; other: one that no standard knows.",
		}, []string{"verb", "code", "kind"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "request_duration_seconds",
			Help:    "Time to the end of the response for kind rest; time to the beginning of the response for kinds watch and stream.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}, []string{"verb", "kind"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "requests_in_flight",
			Help: "Requests being served, by kind (rest, watch, stream).",
		}, []string{"kind"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "refusals_total",
			Help: "Requests that the proxy refused itself, by reason.",
		}, []string{"reason"}),
		impersonations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "impersonations_total",
			Help: "Requests sent on as somebody, by what the caller is (user, tagged).",
		}, []string{"caller"}),
		recordings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "recordings_total",
			Help: "Sessions (exec, attach) of callers with recorders, by what became of the recording: complete, incomplete (the recorder was lost, or the answer of the API server), refused (the API server began no session), none (no recorder was reached, and none had to be).",
		}, []string{"result"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "events_total",
			Help: "Requests of callers whose grants ask for events, by what became of the event: sent, lost (no recorder took it).",
		}, []string{"result"}),
		connections: limit.NewConnectionMetrics(r, subsystem),
	}
	for _, kind := range []Kind{KindREST, KindWatch, KindStream} {
		m.inFlight.WithLabelValues(string(kind)) // so that they exist at 0
	}
	for _, reason := range reasons {
		m.refusals.WithLabelValues(reason)
	}
	for _, result := range []string{eventSent, eventLost} {
		m.events.WithLabelValues(result)
	}
	for _, result := range []string{recordedWhole, recordedPartly, recordedRefused, recordedNot} {
		m.recordings.WithLabelValues(result)
	}
	r.MustRegister(m.requests, m.latency, m.inFlight, m.refusals, m.impersonations, m.recordings, m.events)
	return m
}

func (m *Metrics) begin(c *call) { m.inFlight.WithLabelValues(string(c.kind)).Inc() }
func (m *Metrics) end(c *call)   { m.inFlight.WithLabelValues(string(c.kind)).Dec() }

func (m *Metrics) refuse(f *refusal) { m.refusals.WithLabelValues(f.label).Inc() }

func (m *Metrics) impersonate(id identity.Identity) {
	caller := "user"
	if id.Tagged {
		caller = "tagged"
	}
	m.impersonations.WithLabelValues(caller).Inc()
}

// answered counts a call that ended with code, after whole, its response having
// begun after first.
func (m *Metrics) answered(c *call, code int, first, whole time.Duration) {
	m.requests.WithLabelValues(c.verb(), codeLabel(code), string(c.kind)).Inc()
	d := whole
	if c.kind != KindREST {
		d = first
	}
	m.latency.WithLabelValues(c.verb(), string(c.kind)).Observe(d.Seconds())
}

// codeLabel returns a status code as a label. What runs in a pod may answer with any number
// through the API server, and must not make up series.
func codeLabel(code int) string {
	if code == statusClientClosed || http.StatusText(code) != "" {
		return strconv.Itoa(code)
	}
	return "other"
}

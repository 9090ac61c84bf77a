// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics returns what is to be measured of a Store.
func (s *Store) metrics() []prometheus.Collector {
	const namespace, subsystem = "tailhelm", "recorder"
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}, value)
	}
	deleted := func(reason string, count *atomic.Int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "deleted_total", ConstLabels: prometheus.Labels{"reason": reason},
			Help: "Files with recordings or events that were deleted: for their age, or for space.",
		}, func() float64 { return float64(count.Load()) })
	}
	return []prometheus.Collector{
		deleted(reasonAge, &s.aged), deleted(reasonSpace, &s.crowded),
		gauge("recordings_open", "Recordings that are being made.", func() float64 { open, _ := s.usage(); return float64(open) }),
		gauge("stored_bytes", "Bytes that all recordings and events take on the disk.", func() float64 { _, used := s.usage(); return float64(used) }),
		gauge("protected_bytes", "Bytes of recordings and events that are too young to be deleted for space. When they take all of limit_bytes, recordings are refused.", func() float64 { return float64(s.protected()) }),
		gauge("limit_bytes", "Bytes that all recordings and events may take; 0 when there is no limit.", func() float64 { return float64(s.limits.Total) }),
		gauge("oldest_timestamp_seconds", "When the oldest recording that has ended was last written to, as a Unix time; 0 when there is none.", func() float64 {
			if at := s.oldestWrite(); !at.IsZero() {
				return float64(at.Unix())
			}
			return 0
		}),
		gauge("clock_skew_seconds", "How far the clock was set since the start. Beyond an hour no recording counts as old.", func() float64 { return s.skew().Seconds() }),
		gauge("free_bytes", "Bytes that are free on the file system of the recordings; 0 when it has no room for more files.", func() float64 {
			free, _ := s.free(s.dir) // 0 is an alarm, too
			return float64(free)
		}),
	}
}

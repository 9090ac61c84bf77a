// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Listener accepts connections of another listener, at most PerPeer of them at a time from
// one address. It closes further ones at once: an answer would need a TLS handshake, which
// is what the limit protects. So only the log tells why. Its fields must not be changed
// after the first call of Accept.
type Listener struct {
	net.Listener
	PerPeer int
	// Log is warned of connections that are turned away.
	Log *slog.Logger
	// Metrics count them, and those that are open.
	Metrics *ConnectionMetrics

	crowded Warning
	mu      sync.Mutex
	open    map[netip.Addr]int
}

// ConnectionMetrics are Prometheus metrics of connections.
type ConnectionMetrics struct {
	open       prometheus.Gauge
	turnedAway prometheus.Counter
}

// NewConnectionMetrics returns the metrics of a subsystem of tailhelm, registered in r. It
// panics when r has metrics of these names already.
func NewConnectionMetrics(r prometheus.Registerer, subsystem string) *ConnectionMetrics {
	m := &ConnectionMetrics{
		open: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "tailhelm", Subsystem: subsystem, Name: "connections",
			Help: "Open connections from the tailnet.",
		}),
		turnedAway: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "tailhelm", Subsystem: subsystem, Name: "connections_turned_away_total",
			Help: "Connections closed at once because their peer had too many.",
		}),
	}
	r.MustRegister(m.open, m.turnedAway)
	return m
}

// Accept returns the next connection that is within its peer's limit.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := peerOf(c)
		if l.enter(peer) {
			return &conn{Conn: c, leave: sync.OnceFunc(func() { l.leave(peer) })}, nil
		}
		l.Metrics.turnedAway.Inc()
		if count := l.crowded.Occurred(); count > 0 {
			l.Log.Warn("connections are turned away: their peer has as many as it may have", "count", count, "address", peer.String(), "limit", l.PerPeer)
		}
		_ = c.Close()
	}
}

func (l *Listener) enter(peer netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[peer] >= l.PerPeer {
		return false
	}
	if l.open == nil {
		l.open = map[netip.Addr]int{}
	}
	l.open[peer]++
	l.Metrics.open.Inc()
	return true
}

func (l *Listener) leave(peer netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[peer]--; l.open[peer] == 0 {
		delete(l.open, peer)
	}
	l.Metrics.open.Dec()
}

// peerOf returns the address of a connection's peer.
func peerOf(c net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// conn gives its place back when it is closed.
type conn struct {
	net.Conn
	leave func()
}

func (c *conn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// CloseWrite lets a stream in plain HTTP end one direction.
func (c *conn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
)

// limitPeers returns a listener that accepts connections from l, at most limit of
// them at a time from one address. It closes further ones at once: an answer
// would need a TLS handshake, which is what the limit protects. So only the log tells why.
func limitPeers(l net.Listener, limit int, log *slog.Logger, metrics *Metrics) net.Listener {
	return &peerLimiter{Listener: l, limit: limit, log: log, metrics: metrics, open: map[netip.Addr]int{}}
}

type peerLimiter struct {
	net.Listener
	limit   int
	log     *slog.Logger
	metrics *Metrics
	crowded warning

	mu   sync.Mutex
	open map[netip.Addr]int
}

// Accept returns the next connection that is within its peer's limit.
func (l *peerLimiter) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := peerOf(conn)
		if l.enter(peer) {
			return &limitedConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(peer) })}, nil
		}
		l.metrics.turnedAway.Inc()
		if count := l.crowded.occurred(); count > 0 {
			l.log.Warn("connections are turned away: their peer has as many as it may have", "count", count, "address", peer.String(), "limit", l.limit)
		}
		_ = conn.Close()
	}
}

func (l *peerLimiter) enter(peer netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[peer] >= l.limit {
		return false
	}
	l.open[peer]++
	l.metrics.connections.Inc()
	return true
}

func (l *peerLimiter) leave(peer netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[peer]--; l.open[peer] == 0 {
		delete(l.open, peer)
	}
	l.metrics.connections.Dec()
}

// limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// CloseWrite lets a stream in plain HTTP end one direction.
func (c *limitedConn) CloseWrite() error { return closeWrite(c.Conn) }

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tailhelm/tailhelm/internal/limit"
)

// maxConnectionsPerPeer is how many connections one device may have: a proxy uses one for
// each recording, and few for events.
const maxConnectionsPerPeer = 1024

// Server serves a recorder: over HTTP/1.1, and HTTP/2 without TLS, as WireGuard encrypts.
type Server struct {
	http.Server
	connections limit.Listener
}

// NewServer returns a Server. Its log gets what it is warned of. It panics when its metrics
// are registered already.
func NewServer(h http.Handler, log *slog.Logger, metrics prometheus.Registerer) *Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &Server{
		Server: http.Server{
			Handler: h, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 3 * time.Minute, MaxHeaderBytes: 16 << 10,
			// A sender that is gone without a word has its recordings broken off.
			HTTP2:    &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
			ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
		connections: limit.Listener{PerPeer: maxConnectionsPerPeer, Log: log, Metrics: limit.NewConnectionMetrics(metrics, "recorder")},
	}
}

// Serve is that of [http.Server], for a bounded number of connections of each peer. It must
// be called once.
func (s *Server) Serve(l net.Listener) error {
	s.connections.Listener = l
	return s.Server.Serve(&s.connections)
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Limits on what a peer can cost before it is known what it wants.
const (
	readHeaderTimeout = 10 * time.Second
	// keepAliveTimeout is how long a connection may be idle between requests.
	keepAliveTimeout = 3 * time.Minute
	// maxHeaderBytes bounds the header of a request. It holds what clients send:
	// kubectl's are below 2 KiB, long label selectors included 16 KiB.
	maxHeaderBytes = 64 << 10
	// DefaultPeerConnections is how many connections one peer may have by default.
	// kubectl uses one; a program with many watches over HTTP/1.1 one for each.
	DefaultPeerConnections = 1024
	// maxStreams is how many requests an HTTP/2 connection may have open:
	// kube-apiserver's own value.
	maxStreams = 250
	// lastWords is how long requests that a drain ends have to tell their clients.
	lastWords = time.Second
)

// ServerConfig is how a [Server] serves a [Proxy].
type ServerConfig struct {
	// Proxy carries the requests.
	Proxy *Proxy
	// TLS is the configuration for https listeners, or nil to serve plain HTTP. Its
	// NextProtos are set by the server.
	TLS *tls.Config
	// Host is the host to which plain HTTP is redirected. It may return "" for the
	// host that the request names. Used only with TLS.
	Host func() string
	// Withdraw, if not nil, takes this server out of what sends clients to it, such
	// as a Tailscale Service, and returns when clients have had the time to notice. Serve
	// calls it once, when its ctx is done, before it drains.
	Withdraw func(context.Context) error
	// DrainTimeout bounds how long Serve waits for open requests at its end.
	DrainTimeout time.Duration
	// PeerConnections is how many connections one peer may have; 0 means
	// [DefaultPeerConnections].
	PeerConnections int
	// Log gets what the listeners have to say.
	Log *slog.Logger
	// Metrics counts connections.
	Metrics *Metrics
}

// Server serves a [Proxy] on listeners of the tailnet.
type Server struct {
	config ServerConfig
}

// NewServer returns a Server.
func NewServer(config ServerConfig) *Server {
	if config.PeerConnections == 0 {
		config.PeerConnections = DefaultPeerConnections
	}
	return &Server{config: config}
}

// Serve serves until ctx is done, then drains and returns nil; or returns the
// error that ended a listener. With TLS, secure gets the API and plain redirects
// to it; without, plain gets the API and secure must be nil. The listeners are
// closed when Serve returns.
//
// While Withdraw goes on, requests are served, on connections that end with them;
// watches are ended and no further watches and streams begun: once clients are sent
// to another server, what is open here would be cut off.
//
// A drain closes the listeners, lets requests finish, ends watches (their clients
// watch again elsewhere), and gives streams what is left of the DrainTimeout.
func (s *Server) Serve(ctx context.Context, secure, plain net.Listener) error {
	api := s.newHTTPServer(s.config.Proxy)
	servers := []*http.Server{api}
	group, listening := errgroup.WithContext(ctx)
	if s.config.TLS != nil {
		redirect := s.newHTTPServer(http.HandlerFunc(s.redirect))
		servers = append(servers, redirect)
		api.TLSConfig = s.config.TLS.Clone()
		api.TLSConfig.NextProtos = nil // from Protocols
		group.Go(func() error { return serving("443", api.ServeTLS(s.limit(secure), "", "")) })
		group.Go(func() error { return serving("80", redirect.Serve(s.limit(plain))) })
	} else {
		group.Go(func() error { return serving("80", api.Serve(s.limit(plain))) })
	}
	rechecking, stopRechecking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRechecking()
	go s.config.Proxy.Watch(rechecking) // through the drain, too
	group.Go(func() error {
		<-listening.Done()
		if ctx.Err() != nil && s.config.Withdraw != nil {
			s.withdraw(context.WithoutCancel(ctx), servers)
		}
		s.drain(context.WithoutCancel(ctx), servers)
		return nil
	})
	return group.Wait()
}

// serving names the port in the error of a server, and knows its normal end.
func serving(port string, err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving port %s of the tailnet: %w", port, err)
}

// withdraw lets clients go to other servers. See Serve.
func (s *Server) withdraw(ctx context.Context, servers []*http.Server) {
	open := s.config.Proxy.calls
	s.config.Log.InfoContext(ctx, "withdrawing", "watches", open.count(KindWatch), "streams", open.count(KindStream))
	open.leave()
	for _, server := range servers {
		server.SetKeepAlivesEnabled(false)
	}
	last, cancel := context.WithTimeout(ctx, lastWords)
	defer cancel()
	_ = open.wait(last, KindWatch) // what has not ended by then is cut off
	if err := s.config.Withdraw(ctx); err != nil {
		s.config.Log.WarnContext(ctx, "withdrawing", "error", err)
	}
}

// drain ends the servers. See Serve.
func (s *Server) drain(ctx context.Context, servers []*http.Server) {
	ctx, cancel := context.WithTimeout(ctx, s.config.DrainTimeout)
	defer cancel()
	open := s.config.Proxy.calls
	s.config.Log.InfoContext(ctx, "draining", "timeout", s.config.DrainTimeout.String(),
		"rest", open.count(KindREST), "watches", open.count(KindWatch), "streams", open.count(KindStream))
	closing := shutDown(ctx, servers)
	err := open.wait(ctx, KindREST)
	open.endWatches()
	if err == nil {
		err = open.wait(ctx, KindREST, KindWatch, KindStream)
	}
	if err != nil {
		s.config.Log.WarnContext(ctx, "the drain timeout is over: ending what is open",
			"rest", open.count(KindREST), "watches", open.count(KindWatch), "streams", open.count(KindStream))
		open.endAll(errDrained)
		<-closing
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		defer cancel()
		closing = shutDown(last, servers)
		_ = open.wait(last, KindREST, KindWatch, KindStream) // there is no more time than that
	}
	<-closing
	for _, server := range servers {
		_ = server.Close()
	}
	s.config.Proxy.upstream.close()
	s.config.Log.InfoContext(ctx, "drained")
}

// shutDown closes the listeners of servers at once, and their connections as they
// become idle. It returns a channel that is closed when none is left or ctx is
// done.
func shutDown(ctx context.Context, servers []*http.Server) <-chan struct{} {
	var group sync.WaitGroup
	for _, server := range servers {
		group.Go(func() { _ = server.Shutdown(ctx) }) // its error is ctx's
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		group.Wait()
	}()
	return done
}

// newHTTPServer returns an HTTP server with the limits that everything on the
// tailnet has.
func (s *Server) newHTTPServer(h http.Handler) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       keepAliveTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: maxStreams, SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		ErrorLog:          slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug),
	}
}

func (s *Server) limit(l net.Listener) net.Listener {
	return limitPeers(l, s.config.PeerConnections, s.config.Metrics)
}

// redirect sends a client of plain HTTP to https with 308, which keeps method
// and body (RFC 9110 section 15.4.9).
func (s *Server) redirect(w http.ResponseWriter, r *http.Request) {
	host := s.config.Host()
	if host == "" {
		host = strings.TrimSuffix(r.Host, ":80")
	}
	target := url.URL{Scheme: "https", Host: host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
	http.Redirect(w, r, target.String(), http.StatusPermanentRedirect)
}

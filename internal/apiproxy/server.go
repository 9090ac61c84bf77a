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

	"github.com/tailhelm/tailhelm/internal/limit"
	"github.com/tailhelm/tailhelm/internal/recording"
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
	// uploadBuffer is how much of bodies is held for an API server that does not take it: of
	// all that come over an HTTP/2 connection.
	uploadBuffer = 256 << 10
	// lastWords is how long requests that a drain ends have to tell their clients. Those
	// that are recorded have [recording.FinishLimit] besides, until the recorder has all.
	lastWords = time.Second
	// finishTimeout is how long requests may take to be answered before clients are sent
	// to another server. Those that take longer are likely to be cut off.
	finishTimeout = 3 * time.Second
	// lastRequests is how long before the end of a drain nobody can connect any more, even if
	// streams are still open: requests need time to be answered.
	lastRequests = 5 * time.Second
	// quiesceTimeout is how long the last ones may take, while nobody can connect.
	quiesceTimeout = 2 * time.Second
	// arrival is how long answers have to arrive at their clients: a second's fourth is
	// more than a packet needs for the way around the earth.
	arrival = 250 * time.Millisecond
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
	// calls it once, when its ctx is done, before it drains. While no new connections
	// come, Withdraw can call quiesce, which returns when all requests have been answered, or
	// soon.
	Withdraw func(ctx context.Context, quiesce func(context.Context)) error
	// DrainTimeout bounds how long Serve waits for open requests and streams at its end.
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
	config  ServerConfig
	traffic *traffic
}

// NewServer returns a Server.
func NewServer(config ServerConfig) *Server {
	if config.PeerConnections == 0 {
		config.PeerConnections = DefaultPeerConnections
	}
	return &Server{config: config, traffic: newTraffic()}
}

// Serve serves until ctx is done, then drains and returns nil; or returns the
// error that ended a listener. With TLS, secure gets the API and plain redirects
// to it; without, plain gets the API and secure must be nil. The listeners are
// closed when Serve returns.
//
// With Withdraw there is another server. Before Withdraw is called, watches are ended, no
// further watches and streams begun, and clients asked to leave their connections: once they
// are sent to the other server, what is open here is cut off. From then on and while Withdraw
// goes on, requests are served, on connections that end with them.
//
// Without Withdraw nobody else serves: a successor may wait for the end of this server. So
// requests and watches are served as before while streams are open, on open connections and on
// new ones, and only further streams are refused. This lasts until the DrainTimeout is about
// to be over.
//
// Then a drain closes the listeners, lets requests finish, ends watches (their clients
// watch again elsewhere), and gives streams what is left of the DrainTimeout.
func (s *Server) Serve(ctx context.Context, secure, plain net.Listener) error {
	group, listening := errgroup.WithContext(ctx)
	ports := &ports{plain: newHandover(s.limit(plain))}
	if s.config.TLS != nil {
		ports.secure = newHandover(s.limit(secure))
	}
	servers := s.open(group, ports, s.config.Proxy)
	rechecking, stopRechecking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRechecking()
	go s.config.Proxy.Watch(rechecking) // through the drain, too
	group.Go(func() error {
		<-listening.Done()
		asked, ending := ctx.Err() != nil, context.WithoutCancel(ctx) // not asked: a listener has failed
		if asked && s.config.Withdraw != nil {
			next := s.open(group, ports, lastRequest(s.config.Proxy))
			s.withdraw(ending, servers)
			servers = append(servers, next...)
		}
		ending, cancel := context.WithTimeout(ending, s.config.DrainTimeout)
		defer cancel()
		if asked && s.config.Withdraw == nil {
			s.awaitStreams(ending)
		}
		ports.close()
		s.drain(ending, servers)
		return nil
	})
	return group.Wait()
}

// ports are what a Server listens on.
type ports struct {
	secure, plain *handover // secure is nil without TLS
}

// close refuses further connections.
func (p *ports) close() {
	_ = p.plain.Close() // there is nothing to do about an error
	if p.secure != nil {
		_ = p.secure.Close()
	}
}

// open begins to serve in group, and returns what serves.
func (s *Server) open(group *errgroup.Group, p *ports, h http.Handler) []*http.Server {
	api := s.newHTTPServer(h)
	plain := p.plain.turn()
	if p.secure == nil {
		group.Go(func() error { return serving("80", api.Serve(plain)) })
		return []*http.Server{api}
	}
	secure, redirect := p.secure.turn(), s.newHTTPServer(http.HandlerFunc(s.redirect))
	api.TLSConfig = s.config.TLS.Clone()
	api.TLSConfig.NextProtos = nil // from Protocols
	group.Go(func() error { return serving("443", api.ServeTLS(secure, "", "")) })
	group.Go(func() error { return serving("80", redirect.Serve(plain)) })
	return []*http.Server{api, redirect}
}

// serving names the port in the error of a server, and knows its normal end.
func serving(port string, err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving port %s of the tailnet: %w", port, err)
}

// lastRequest asks clients to send no further request on a connection. (A server without
// keep-alives would wait until nothing goes on on a connection over HTTP/2, which
// may never be.)
func lastRequest(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // over HTTP/2, net/http sends GOAWAY
		h.ServeHTTP(w, r)
	})
}

// withdraw lets the clients of servers go to other ones. See Serve.
func (s *Server) withdraw(ctx context.Context, servers []*http.Server) {
	open := s.config.Proxy.calls
	s.config.Log.InfoContext(ctx, "withdrawing", "watches", open.count(KindWatch), "streams", open.count(KindStream))
	open.refuse(refuseLeaving(), KindWatch, KindStream)
	open.endWatches()
	finishing, cancel := context.WithTimeout(ctx, finishTimeout)
	defer cancel()
	<-shutDown(finishing, servers) // what has not ended by then is cut off
	if err := s.config.Withdraw(ctx, s.quiesce); err != nil {
		s.config.Log.WarnContext(ctx, "withdrawing", "error", err)
	}
}

// quiesce returns when everything has been answered and the answers have arrived, or
// soon.
func (s *Server) quiesce(ctx context.Context) {
	last, cancel := context.WithTimeout(ctx, quiesceTimeout)
	defer cancel()
	_ = s.traffic.wait(last) // what has not ended by then is cut off
	timer := time.NewTimer(arrival)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// awaitStreams refuses further streams, and returns when none is open or the DrainTimeout,
// which begins with the call, is about to be over. See Serve.
func (s *Server) awaitStreams(ctx context.Context) {
	open, timeout := s.config.Proxy.calls, s.config.DrainTimeout
	open.refuse(refuseDraining(), KindStream)
	if streams := open.count(KindStream); streams > 0 {
		s.config.Log.InfoContext(ctx, "serving on until streams have ended", "timeout", timeout.String(), "streams", streams)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout-min(lastRequests, timeout/2))
	defer cancel()
	_ = open.wait(ctx, KindStream) // drain gives those that are open the rest
}

// drain ends the servers. ctx ends with the DrainTimeout. See Serve.
func (s *Server) drain(ctx context.Context, servers []*http.Server) {
	open := s.config.Proxy.calls
	deadline, _ := ctx.Deadline()
	s.config.Log.InfoContext(ctx, "draining", "deadline", deadline,
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
		s.awaitRecordings(context.WithoutCancel(ctx))
	}
	<-closing
	for _, server := range servers {
		_ = server.Close()
	}
	s.config.Proxy.upstream.close()
	s.config.Log.InfoContext(ctx, "drained")
}

// awaitRecordings returns when no session is open any more that is recorded: what is
// queued for the recorder would be lost with the node, and the session's line in the log
// with the process. The chart gives a pod the time, and some for the rest of its end.
func (s *Server) awaitRecordings(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, recording.FinishLimit)
	defer cancel()
	recorded := func(c *call) bool { return c.recorded.Load() }
	if err := s.config.Proxy.calls.waitFor(ctx, recorded); err != nil {
		s.config.Log.WarnContext(ctx, "recordings of sessions are not whole: the recorder does not confirm their ends in time")
	}
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
		ConnState:         s.traffic.note,
		Protocols:         protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, SendPingTimeout: pingAfter, PingTimeout: pingTimeout,
			MaxReceiveBufferPerConnection: uploadBuffer, MaxReceiveBufferPerStream: uploadBuffer,
		},
		ErrorLog: slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug),
	}
}

func (s *Server) limit(l net.Listener) net.Listener {
	return &limit.Listener{Listener: l, PerPeer: s.config.PeerConnections, Log: s.config.Log, Metrics: s.config.Metrics.connections}
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

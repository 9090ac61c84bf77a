// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
)

// serviceBackoff is the pause between attempts to tell Tailscale's code about a
// Service. It fails only while the device is not on the tailnet.
var serviceBackoff = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 7, Cap: 10 * time.Second}

// unreadyGrace is how long a host of a Service may be not ready before it is withdrawn.
// It outlasts a restart of the API server, for which every host is not ready.
const unreadyGrace = time.Minute

// holdAfter is how long new connections wait after a Service was withdrawn. Clients
// send the first packet of a connection again after a second.
const holdAfter = time.Second

// holdLimit bounds how long new connections wait, whatever takes so long.
const holdLimit = 5 * time.Second

// Service is a Tailscale Service of which the node is a host: one name and address
// in the tailnet, served by whichever host is up.
//
// Connections to the Service's addresses are taken out of this process's own
// network stack, so their RemoteAddr is the peer's tailnet address, and nothing
// outside this process can make one.
type Service struct {
	node *Node
	name tailcfg.ServiceName
	// handlers are empty for each port: connections then come to accept.
	handlers map[uint16]*ipn.TCPPortHandler

	mu        sync.Mutex
	listeners map[uint16]*serviceListener
	held      chan struct{} // closed when new connections need not wait any more; nil: they need not

	advertising sync.Mutex // held while telling Tailscale's code
	leaving     bool       // withdrawn for good
}

// Service makes the node a host of TCP ports of the named Service (svc:name). It must
// be called before [Node.Start], and [Service.Run] must run for anything to happen.
func (n *Node) Service(name tailcfg.ServiceName, ports ...uint16) *Service {
	s := &Service{node: n, name: name, handlers: map[uint16]*ipn.TCPPortHandler{}, listeners: map[uint16]*serviceListener{}}
	for _, port := range ports {
		s.handlers[port] = &ipn.TCPPortHandler{}
	}
	n.service = s
	return s
}

// Name returns the Service's FQDN without the trailing dot, or "" before the node
// is on the tailnet.
func (s *Service) Name() string {
	_, domain, ok := strings.Cut(s.node.Name(), ".")
	if !ok {
		return ""
	}
	return s.name.WithoutPrefix() + "." + domain
}

// Listen accepts connections to one of the ports that the Service was made with.
func (s *Service) Listen(port uint16) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handlers[port] == nil || s.listeners[port] != nil {
		return nil, fmt.Errorf("port %d of %s is not one to listen on, or has a listener already", port, s.name)
	}
	l := &serviceListener{service: s, port: port, conns: make(chan net.Conn), closed: make(chan struct{})}
	s.listeners[port] = l
	return l, nil
}

// Ready returns nil when the tailnet has made the node a host of the Service, and
// otherwise what keeps it from that.
func (s *Service) Ready(context.Context) error {
	st := s.node.currentStatus()
	switch {
	case st.serviceErr != nil:
		return fmt.Errorf("%s: %w", s.name, st.serviceErr)
	case !st.advertised:
		return fmt.Errorf("%s is not advertised yet: waiting for the other checks", s.name)
	case len(st.hosted[s.name]) == 0:
		return fmt.Errorf("the tailnet has not approved this device as a host of %s: add the device's tag to autoApprovers.services of the tailnet policy, or approve it in the admin console (Services)", s.name)
	}
	return nil
}

// Run declares the Service to the tailnet, and advertises it while ready returns nil,
// which it asks once a second. A host that is not ready for longer than unreadyGrace is
// withdrawn: others may be. Run returns nil once ctx is done. It does not withdraw the
// Service then: see [Service.Withdraw].
func (s *Service) Run(ctx context.Context, ready func(context.Context) error) error {
	defer s.node.server.RegisterFallbackTCPHandler(s.accept)()
	if err := s.retry(ctx, s.declare); err != nil {
		return nil //nolint:nilerr // ctx is done
	}
	s.node.config.Log.InfoContext(ctx, "hosting a Tailscale Service", "service", s.name)
	advertised, lastReady := false, time.Now()
	for ; ctx.Err() == nil; _ = pause(ctx, time.Second) {
		err := ready(ctx)
		if err == nil {
			lastReady = time.Now()
		}
		wanted := err == nil || advertised && time.Since(lastReady) < unreadyGrace
		if wanted == advertised || ctx.Err() != nil {
			continue
		}
		if s.retry(ctx, func(ctx context.Context) error { return s.advertise(ctx, wanted) }) == nil {
			advertised = wanted
			s.node.config.Log.InfoContext(ctx, "Tailscale Service", "service", s.name, "advertised", advertised, "reason", err)
		}
	}
	return nil
}

// Withdraw tells the tailnet to send clients to other hosts of the Service, for good.
// Connections go on until their clients hear of it, which takes the tailnet up to
// some 15 seconds. When a client does, what is open is cut off without a word: packets of
// a host that is none any more are dropped.
//
// So Withdraw holds new connections back, and calls quiesce, which returns when the open
// ones have ended, before it tells the tailnet. Clients that hear of it within holdAfter
// lose nothing: they try to connect again a second later, at another host. Connections
// of the others are accepted then.
func (s *Service) Withdraw(ctx context.Context, quiesce func(context.Context)) error {
	defer s.holdBack()()
	quiesce(ctx)
	s.advertising.Lock()
	s.leaving = true
	s.advertising.Unlock()
	if err := s.advertise(ctx, false); err != nil {
		return err
	}
	s.node.config.Log.InfoContext(ctx, "withdrew a Tailscale Service", "service", s.name)
	_ = pause(ctx, holdAfter) // it has been withdrawn
	return nil
}

// holdBack has new connections wait until the function that it returns is called, or
// holdLimit is over.
func (s *Service) holdBack() func() {
	held := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = held
	release := sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.held = nil
		close(held)
	})
	timer := time.AfterFunc(holdLimit, release)
	return func() {
		timer.Stop()
		release()
	}
}

// retry calls f until it succeeds, and returns ctx's error once ctx is done.
func (s *Service) retry(ctx context.Context, f func(context.Context) error) error {
	for backoff := serviceBackoff; ; {
		if err := s.node.await(ctx, func(st status) bool { return st.state == ipn.Running }); err != nil {
			return err
		}
		err := f(ctx)
		s.node.update(func(st *status) { st.serviceErr = err })
		if err == nil {
			return nil
		}
		s.node.config.Log.WarnContext(ctx, "Tailscale Service", "service", s.name, "error", err)
		if err := pause(ctx, backoff.Step()); err != nil {
			return err
		}
	}
}

// declare tells Tailscale's code, and by that the control server, which ports the
// node would serve.
func (s *Service) declare(ctx context.Context) error {
	err := s.node.client.SetServeConfig(ctx, &ipn.ServeConfig{
		Services: map[tailcfg.ServiceName]*ipn.ServiceConfig{s.name: {TCP: s.handlers}},
	})
	if err != nil {
		return fmt.Errorf("declaring the Service: %w", err)
	}
	return nil
}

// advertise says whether the tailnet may send clients to this host.
func (s *Service) advertise(ctx context.Context, on bool) error {
	s.advertising.Lock()
	defer s.advertising.Unlock()
	on = on && !s.leaving
	prefs := &ipn.MaskedPrefs{AdvertiseServicesSet: true}
	if on {
		prefs.AdvertiseServices = []string{s.name.String()}
	}
	if _, err := s.node.client.EditPrefs(ctx, prefs); err != nil {
		return fmt.Errorf("advertising the Service: %w", err)
	}
	s.node.update(func(st *status) { st.advertised = on })
	return nil
}

// accept is the handler of connections for which the node has no listener.
func (s *Service) accept(src, dst netip.AddrPort) (handler func(net.Conn), intercept bool) {
	s.node.mu.Lock()
	ours := slices.Contains(s.node.status.hosted[s.name], dst.Addr())
	s.node.mu.Unlock()
	if !ours {
		return nil, false
	}
	s.mu.Lock()
	l, held := s.listeners[dst.Port()], s.held
	s.mu.Unlock()
	if held != nil {
		// No answer has been sent yet. tsnet asks under a lock that only new connections and
		// listeners of its own need.
		<-held
	}
	if l == nil {
		return nil, true // refused
	}
	return func(conn net.Conn) { l.deliver(&serviceConn{Conn: conn, peer: src, service: dst}) }, true
}

// serviceListener is a listener on one port of a Service.
type serviceListener struct {
	service *Service
	port    uint16
	conns   chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

// deliver hands conn to the next Accept.
func (l *serviceListener) deliver(conn net.Conn) {
	select {
	case l.conns <- conn:
	case <-l.closed:
		_ = conn.Close()
	}
}

// Accept returns the next connection.
func (l *serviceListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close refuses further connections.
func (l *serviceListener) Close() error {
	l.once.Do(func() {
		l.service.mu.Lock()
		defer l.service.mu.Unlock()
		delete(l.service.listeners, l.port)
		close(l.closed)
	})
	return nil
}

// Addr returns the port on no particular address: a Service has several.
func (l *serviceListener) Addr() net.Addr { return &net.TCPAddr{Port: int(l.port)} }

// serviceConn is a connection to a Service. Its addresses are those of the packets
// that began it: the network stack knows them only once the handshake has ended.
type serviceConn struct {
	net.Conn
	peer, service netip.AddrPort
}

// RemoteAddr returns the peer's tailnet address.
func (c *serviceConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.peer) }

// LocalAddr returns the Service's address.
func (c *serviceConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.service) }

// CloseWrite ends the writing direction.
func (c *serviceConn) CloseWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

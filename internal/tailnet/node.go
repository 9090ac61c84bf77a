// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/envknob"
	"tailscale.com/ipn"
	"tailscale.com/ipn/store"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
	"tailscale.com/tstime"
	"tailscale.com/types/key"
	"tailscale.com/types/views"
	"tailscale.com/wgengine/filter"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// pathTrust is how long a client sends to where it has reached a device before: 6.5 seconds
// (trustUDPAddrDuration in Tailscale's magicsock), and some more. A device that comes back
// as another process is elsewhere. A client that turns to it within that time loses the first
// packet of WireGuard's handshake, and sends the next one 5 seconds later.
const pathTrust = 7 * time.Second

// Config is what a [Node] is made of.
type Config struct {
	// Hostname is the name that the device asks for.
	Hostname string
	// Dir is a folder that the node may write to. It holds the state when Store is nil.
	Dir string
	// Store holds the state, or is nil.
	Store ipn.StateStore
	// ControlURL is the control server; "" means Tailscale's.
	ControlURL string
	// Tags are what the device asks to be tagged with.
	Tags []string
	// Port is the UDP port for WireGuard; 0 means any.
	Port uint16
	// AcceptRoutes makes the node use the routes that subnet routers advertise.
	AcceptRoutes bool
	// Endpoints are addresses at which the node can be reached from outside its network,
	// besides those that it finds by itself.
	Endpoints []netip.AddrPort
	// AuthKeys log the node in, or are nil: then a person does, at the address that the
	// log tells. Nothing else tells it: who opens it owns the device.
	AuthKeys AuthKeys
	// Log gets what the node has to say; at level debug, all that Tailscale's code says.
	Log *slog.Logger
}

// Node is a device of a tailnet, run by this process.
type Node struct {
	config Config
	server *tsnet.Server
	client *local.Client
	peers  *peers
	// service is the Tailscale Service that the node hosts, or nil.
	service *Service
	removal removalTiming

	mu      sync.Mutex
	status  status
	changed chan struct{} // closed and replaced when status changes
}

// status is what is known of the node's way onto the tailnet.
type status struct {
	state    ipn.State
	back     time.Time // when Start began to bring back a device that was there before, or zero
	loginURL string
	err      error  // why the last attempt to log in failed, or nil
	name     string // FQDN without the trailing dot
	addrs    []netip.Addr
	id       tailcfg.StableNodeID
	// unheard is when the node last heard from the control server, or zero while it does.
	unheard time.Time
	// removedKey is the node key that the control server does not know any more, until the
	// node has another one; zero otherwise.
	removedKey key.NodePublic

	hosted     tailcfg.ServiceIPMappings // Services that the tailnet lets the node host
	advertised bool                      // whether the node has said that it hosts its Service
	serviceErr error                     // why it could not say so, or nil
}

// NewNode returns a node that is not on the tailnet yet: see [Node.Run].
func NewNode(config Config) (*Node, error) {
	// The netmap of an earlier run may hold grants that were revoked since: until the
	// control server has spoken, nobody is known.
	envknob.Setenv("TS_USE_CACHED_NETMAP", "false")
	if config.ControlURL != "" {
		// Nothing of a device on somebody's own control server belongs on Tailscale's
		// log server.
		envknob.SetNoLogsNoSupport()
	}
	reportACMELimits()
	if config.Store == nil {
		s, err := store.New(debugf(config.Log), filepath.Join(config.Dir, "tailscaled.state"))
		if err != nil {
			return nil, fmt.Errorf("the device's state in %s: %w", config.Dir, err)
		}
		config.Store = s
	}
	return &Node{
		config: config,
		server: &tsnet.Server{
			Dir: config.Dir, Store: config.Store, Hostname: config.Hostname, ControlURL: config.ControlURL,
			AdvertiseTags: config.Tags, Port: config.Port,
			Logf: debugf(config.Log), UserLogf: debugf(config.Log),
		},
		removal: defaultRemovalTiming,
		changed: make(chan struct{}),
	}, nil
}

// debugf returns a logger for Tailscale's code.
func debugf(log *slog.Logger) func(string, ...any) {
	return func(format string, args ...any) {
		if ctx := context.Background(); log.Enabled(ctx, slog.LevelDebug) {
			log.DebugContext(ctx, "tailscale", "says", strings.TrimSpace(fmt.Sprintf(format, args...)))
		}
	}
}

// Start starts the node with what its state holds, or with an auth key when it
// holds nothing: then it tries until it has a key. It returns before the node is on
// the tailnet; [Node.Run] must be running for it to get and stay there. Its errors
// are ctx's, those of this machine, and those of a state that cannot be read for good.
func (n *Node) Start(ctx context.Context) error {
	if s, ok := n.config.Store.(*SecretStore); ok {
		if err := s.Load(ctx, func(err error) { n.update(func(st *status) { st.err = err }) }); err != nil {
			return err
		}
		n.update(func(st *status) { st.err = nil })
	}
	if _, err := n.config.Store.ReadState(ipn.CurrentProfileStateKey); errors.Is(err, ipn.ErrStateNotExist) {
		if n.server.AuthKey, err = n.firstKey(ctx); err != nil {
			return err
		}
	} else {
		n.update(func(st *status) { st.back = time.Now() })
	}
	client, err := n.server.LocalClient() // starts the server
	if err != nil {
		return fmt.Errorf("starting the tailnet device: %w", err)
	}
	n.client = client
	if err := n.setPrefs(ctx); err != nil {
		return fmt.Errorf("starting the tailnet device: %w", err)
	}
	if len(n.config.Endpoints) > 0 {
		n.server.Sys().MagicSock.Get().SetStaticEndpoints(views.SliceOf(n.config.Endpoints))
	}
	engine := n.server.Sys().Engine.Get()
	n.peers = newPeers(n.whoIs, func() *filter.Filter { return engine.GetFilter() })
	return nil
}

// setPrefs sets what tsnet does not.
func (n *Node) setPrefs(ctx context.Context) error {
	prefs := &ipn.MaskedPrefs{RouteAllSet: true}
	prefs.RouteAll = n.config.AcceptRoutes
	// A node that was killed while it hosted a Service would come back as a host
	// before it can serve anything.
	prefs.AdvertiseServicesSet = n.service != nil
	_, err := n.client.EditPrefs(ctx, prefs)
	return err
}

// Close takes the node off the tailnet for this run. Its state stays.
func (n *Node) Close() error { return n.server.Close() }

// Listen listens on a TCP port of the node's tailnet addresses, and on no other.
func (n *Node) Listen(port uint16) (net.Listener, error) {
	l, err := n.server.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, fmt.Errorf("listening on port %d of the tailnet: %w", port, err)
	}
	return l, nil
}

// Dial connects to a TCP port (ip:port) of another device of the tailnet. What is no
// device's address is refused at once, and nothing outside the tailnet is reached.
func (n *Node) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	target, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, fmt.Errorf("dialing %q: %w", address, err)
	}
	if _, err := n.client.WhoIs(ctx, target.Addr().String()); err != nil {
		return nil, fmt.Errorf("dialing %s: no device of the tailnet with this address: %w", address, err)
	}
	// Not the server's own Dial, which turns to the machine's network for what it does
	// not know by then.
	conn, err := n.server.Sys().Dialer.Get().NetstackDialTCP(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("dialing %s on the tailnet: %w", address, err)
	}
	return conn, nil
}

// Identify returns who is at addr. See [identity.FromWhoIs] for its errors.
func (n *Node) Identify(ctx context.Context, addr netip.Addr) (identity.Identity, error) {
	return n.peers.identify(ctx, addr)
}

// Changed returns a channel that is closed when an answer of Identify may have
// changed.
func (n *Node) Changed() <-chan struct{} { return n.peers.changes() }

// Name returns the node's FQDN without the trailing dot, or "" before it has one.
func (n *Node) Name() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status.name
}

// Ready returns nil when the node is on the tailnet and can be reached there, and otherwise
// what keeps it from that and what to do about it.
func (n *Node) Ready(context.Context) error {
	s := n.currentStatus()
	switch {
	case s.isRemoved():
		return n.removalError(&s)
	case s.state == ipn.Running && time.Since(s.back) < pathTrust:
		return fmt.Errorf("clients look for this device where it was before: ready in %s", (pathTrust - time.Since(s.back)).Round(time.Second))
	case s.state == ipn.Running:
		return nil
	case s.err != nil:
		return fmt.Errorf("cannot log in to the tailnet: %w", s.err)
	case s.state == ipn.NeedsMachineAuth:
		return errors.New("the device waits for approval: approve it in the admin console of the tailnet")
	case s.loginURL != "":
		return errors.New("the device is not logged in: the log has the address to open")
	}
	return fmt.Errorf("not on the tailnet yet (state %s)", s.state)
}

// Warning returns nil, or what will keep a node that is on the tailnet from working well.
func (n *Node) Warning(context.Context) error {
	s := n.currentStatus()
	if !s.unheard.IsZero() {
		return fmt.Errorf("no word from the control server since %s: devices that are new cannot connect, and changes of the tailnet policy do not arrive", s.unheard.UTC().Format(time.RFC3339))
	}
	return nil
}

// NameWarning returns nil, or that the node has another name than it asked for.
func (n *Node) NameWarning(context.Context) error {
	if s := n.currentStatus(); isNumbered(s.name, n.config.Hostname) {
		return fmt.Errorf("this device is called %s, not %s, because another device has that name: remove that one in the admin console of the tailnet, then give this one its name; or ask for the name that it has (operatorConfig.hostname of the chart, --hostname)", s.name, n.config.Hostname)
	}
	return nil
}

// isNumbered reports whether fqdn is the name that the tailnet gives a device when its
// hostname is taken: with a number behind it. Other names were given by people.
func isNumbered(fqdn, hostname string) bool {
	label, _, _ := strings.Cut(fqdn, ".")
	number, is := strings.CutPrefix(label, strings.ToLower(hostname)+"-")
	_, err := strconv.ParseUint(number, 10, 32)
	return is && err == nil
}

// currentStatus returns the status as it is now.
func (n *Node) currentStatus() status {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.status
}

// update changes the status and tells those who wait.
func (n *Node) update(change func(*status)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(&n.status)
	close(n.changed)
	n.changed = make(chan struct{})
}

// statusChanged returns a channel that is closed at the next change of the status.
func (n *Node) statusChanged() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// await returns nil when the condition holds for the status, and ctx's error once
// ctx is done.
func (n *Node) await(ctx context.Context, condition func(status) bool) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n.mu.Lock()
		s, changed := n.status, n.changed
		n.mu.Unlock()
		if condition(s) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// pause waits for d or until ctx is done.
func pause(ctx context.Context, d time.Duration) error {
	if !tstime.Sleep(ctx, d) {
		return ctx.Err()
	}
	return nil
}

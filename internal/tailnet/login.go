// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/wait"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const (
	// loginGrace is how long a login may take before another is tried.
	loginGrace = 30 * time.Second
	// rewatchDelay is the pause before the IPN bus is watched again.
	rewatchDelay = time.Second
)

// loginBackoff is the pause between attempts to log in: each may cost a call of
// the Tailscale API and a registration with the control server.
var loginBackoff = wait.Backoff{Duration: 2 * time.Second, Factor: 2, Jitter: 0.1, Steps: 9, Cap: 5 * time.Minute}

// Run keeps the node on the tailnet until ctx is done, and returns nil then.
func (n *Node) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.watch(ctx) })
	group.Go(func() error { return n.stayLoggedIn(ctx) })
	group.Go(func() error { return n.watchRemoval(ctx) })
	if err := group.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// watch follows the node's state and its peers on the IPN bus.
func (n *Node) watch(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := n.watchOnce(ctx); err != nil && ctx.Err() == nil {
			n.config.Log.WarnContext(ctx, "watching the tailnet device", "error", err)
		}
		n.peers.invalidate() // what happened meanwhile was not seen
		_ = pause(ctx, rewatchDelay)
	}
	return ctx.Err()
}

func (n *Node) watchOnce(ctx context.Context) error {
	w, err := n.client.WatchIPNBus(ctx, ipn.NotifyInitialState|ipn.NotifyPeerPatches)
	if err != nil {
		return err
	}
	defer func() { _ = w.Close() }()
	for {
		note, err := w.Next()
		if err != nil {
			return err
		}
		n.notice(ctx, &note)
	}
}

// notice takes in one notification of the IPN bus.
func (n *Node) notice(ctx context.Context, note *ipn.Notify) {
	// Not PeerChangedPatch: where peers are, and whether they are online, says nothing of
	// who they are, and large tailnets tell it all the time.
	if len(note.PeersChanged) > 0 || len(note.PeersRemoved) > 0 ||
		len(note.UserProfiles) > 0 || note.SelfChange != nil || note.State != nil {
		n.peers.invalidate()
	}
	if note.ErrMessage != nil {
		err := errors.New(*note.ErrMessage)
		n.config.Log.WarnContext(ctx, "the control server refuses the device", "error", err)
		n.update(func(s *status) { s.err = fmt.Errorf("the control server says: %w", err) })
	}
	if note.BrowseToURL != nil && *note.BrowseToURL != "" && n.config.AuthKeys == nil {
		n.config.Log.WarnContext(ctx, "log the device in to the tailnet", "at", *note.BrowseToURL)
		n.update(func(s *status) { s.loginURL = *note.BrowseToURL })
	}
	if note.State != nil {
		n.enter(ctx, *note.State)
	} else if self := note.SelfChange; self != nil {
		n.noticeSelf(ctx, self.Key, self.StableID, self.Name, self.Addresses, self.CapMap)
	}
}

// enter notes a new state.
func (n *Node) enter(ctx context.Context, state ipn.State) {
	if state == ipn.Running || state == ipn.NeedsMachineAuth {
		if st, err := n.client.StatusWithoutPeers(ctx); err == nil && st.Self != nil {
			self := st.Self
			n.noticeSelf(ctx, self.PublicKey, self.ID, self.DNSName, prefixes(self.TailscaleIPs), self.CapMap)
		}
	}
	n.update(func(s *status) {
		s.state = state
		if state == ipn.Running && !s.isRemoved() {
			s.err, s.loginURL = nil, ""
		}
	})
	n.config.Log.InfoContext(ctx, "tailnet device", "state", state.String())
}

// prefixes returns addrs as the prefixes of one address each, as a netmap has them.
func prefixes(addrs []netip.Addr) []netip.Prefix {
	p := make([]netip.Prefix, len(addrs))
	for i, addr := range addrs {
		p[i] = netip.PrefixFrom(addr, addr.BitLen())
	}
	return p
}

// noticeSelf notes what the tailnet says of the node itself.
func (n *Node) noticeSelf(ctx context.Context, nodeKey key.NodePublic, id tailcfg.StableNodeID, fqdn string, addrs []netip.Prefix, caps tailcfg.NodeCapMap) {
	hosted, err := hostedServices(caps)
	if err != nil {
		n.config.Log.WarnContext(ctx, "the control server's list of Services", "error", err)
	}
	name := strings.TrimSuffix(fqdn, ".")
	if name != n.Name() {
		n.config.Log.InfoContext(ctx, "on the tailnet", "name", name)
	}
	n.update(func(s *status) {
		s.id, s.name, s.hosted = id, name, hosted
		if s.isRemoved() && s.removedKey != nodeKey {
			s.removedKey, s.err, s.loginURL = key.NodePublic{}, nil, ""
		}
		s.addrs = nil
		for _, prefix := range addrs {
			s.addrs = append(s.addrs, prefix.Addr())
		}
	})
}

// hostedServices returns the Services that the tailnet lets the node host, with
// their addresses.
func hostedServices(caps tailcfg.NodeCapMap) (tailcfg.ServiceIPMappings, error) {
	lists, err := tailcfg.UnmarshalNodeCapJSON[tailcfg.ServiceIPMappings](caps, tailcfg.NodeAttrServiceHost)
	if err != nil || len(lists) == 0 {
		return nil, err
	}
	return lists[0], nil
}

// stayLoggedIn logs the node in whenever it needs that.
func (n *Node) stayLoggedIn(ctx context.Context) error {
	for {
		if err := n.await(ctx, needsLogin); err != nil {
			return err
		}
		s := n.currentStatus()
		backoff := loginBackoff
		// A login is under way: the one that Start began, or the last of this loop. Nobody
		// began one for a device that was removed.
		for begun := !s.isRemoved(); !begun || !n.loggedInWithin(ctx, loginGrace); begun = true {
			if err := pause(ctx, backoff.Step()); err != nil {
				return err
			}
			if !needsLogin(n.currentStatus()) {
				break // the last one has come through after all
			}
			if err := n.login(ctx); err != nil {
				n.config.Log.WarnContext(ctx, "logging in to the tailnet", "error", err)
				n.update(func(s *status) { s.err = err })
			}
		}
	}
}

func needsLogin(s status) bool { return s.state == ipn.NeedsLogin || s.isRemoved() }

// loggedInWithin waits until the node needs no login any more, gives up early when
// the attempt fails, and reports whether it is logged in. A node that a person
// must log in is waited for without end.
func (n *Node) loggedInWithin(ctx context.Context, grace time.Duration) bool {
	if n.config.AuthKeys != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, grace)
		defer cancel()
	}
	loggedIn := false
	_ = n.await(ctx, func(s status) bool {
		loggedIn = !needsLogin(s)
		return loggedIn || s.err != nil
	})
	return loggedIn
}

// authKey returns a key for the next login, or "" when a person logs the node in.
func (n *Node) authKey(ctx context.Context) (string, error) {
	if n.config.AuthKeys == nil {
		return "", nil
	}
	return n.config.AuthKeys.AuthKey(ctx)
}

// firstKey returns the key for the first login. A device that starts without one
// would ask the control server for an address where anybody could log it in.
func (n *Node) firstKey(ctx context.Context) (string, error) {
	for backoff := loginBackoff; ; {
		key, err := n.authKey(ctx)
		if err == nil {
			n.update(func(s *status) { s.err = nil })
			return key, nil
		}
		n.config.Log.WarnContext(ctx, "no auth key yet", "error", err)
		n.update(func(s *status) { s.err = err })
		if err := pause(ctx, backoff.Step()); err != nil {
			return "", err
		}
	}
}

// login begins a login with a new key.
func (n *Node) login(ctx context.Context) error {
	key, err := n.authKey(ctx)
	if err != nil {
		return err
	}
	n.update(func(s *status) { s.err = nil })
	if err := n.client.Start(ctx, ipn.Options{AuthKey: key}); err != nil {
		return fmt.Errorf("starting a login: %w", err)
	}
	if err := n.client.StartLoginInteractive(ctx); err != nil {
		return fmt.Errorf("starting a login: %w", err)
	}
	return nil
}

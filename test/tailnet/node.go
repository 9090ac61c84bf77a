// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"tailscale.com/net/tsaddr"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/dnsname"
)

// node is what the control server knows of a device. All of it is guarded by
// Tailnet.mu, and what pointers and slices point to is never changed, so that
// messages may share it.
type node struct {
	id        tailcfg.NodeID
	machine   key.MachinePublic
	key       key.NodePublic
	name      string // unique label under the tailnet's domain
	hostname  string // what the device calls itself
	identity  Identity
	ephemeral bool
	created   time.Time
	lastSeen  time.Time
	expiry    time.Time // zero: never
	addrs     []netip.Prefix

	version   tailcfg.CapabilityVersion
	disco     key.DiscoPublic
	endpoints []netip.AddrPort
	homeDERP  int
	hostinfo  *tailcfg.Hostinfo

	stream  *mapStream                   // nil: offline
	adverts map[tailcfg.ServiceName]bool // Services it has configured: whether it advertises them; none while offline
	pings   []*tailcfg.PingRequest
	removed bool
}

func (n *node) expired(now time.Time) bool { return !n.expiry.IsZero() && !now.Before(n.expiry) }

func (n *node) stableID() tailcfg.StableNodeID {
	return tailcfg.StableNodeID("n" + strconv.FormatInt(int64(n.id), 10) + "CNTRL")
}

// addNodeLocked makes a device, with the next free addresses and number.
func (t *Tailnet) addNodeLocked(machine key.MachinePublic, hostname string) *node {
	t.lastID++
	n := &node{id: t.lastID, machine: machine, created: time.Now(), addrs: t.nextAddrsLocked()}
	t.renameLocked(n, hostname)
	return n
}

// nextAddrsLocked are an IPv4 and an IPv6 address that nothing had before.
func (t *Tailnet) nextAddrsLocked() []netip.Prefix {
	for {
		t.lastAddr = t.lastAddr.Next()
		v4, v6 := t.lastAddr, tsaddr.Tailscale4To6(t.lastAddr)
		if !t.addrTakenLocked("", v4) && !t.addrTakenLocked("", v6) {
			return []netip.Prefix{netip.PrefixFrom(v4, v4.BitLen()), netip.PrefixFrom(v6, v6.BitLen())}
		}
	}
}

// renameLocked gives n the name that its hostname asks for, with a number
// behind it where another device has that name already.
func (t *Tailnet) renameLocked(n *node, hostname string) {
	if n.hostname == hostname && n.name != "" {
		return
	}
	n.hostname = hostname
	base := dnsname.SanitizeHostname(hostname)
	if base == "" {
		base = "device"
	}
	n.name = base
	for i := 1; t.nameTakenLocked(n); i++ {
		n.name = base + "-" + strconv.Itoa(i)
	}
}

func (t *Tailnet) nameTakenLocked(n *node) bool {
	for _, other := range t.nodes {
		if other != n && other.name == n.name {
			return true
		}
	}
	return false
}

// setKeyLocked files n under a new key.
func (t *Tailnet) setKeyLocked(n *node, k key.NodePublic) {
	delete(t.nodes, n.key)
	n.key = k
	t.nodes[k] = n
}

func (t *Tailnet) removeLocked(n *node) {
	delete(t.nodes, n.key)
	n.removed = true
}

// nodeLocked finds a device by name.
func (t *Tailnet) nodeLocked(name string) (*node, error) {
	for _, n := range t.nodes {
		if n.name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("no device %q in the tailnet", name)
}

// sortedLocked returns the devices in the order in which they joined.
func (t *Tailnet) sortedLocked() []*node {
	out := make([]*node, 0, len(t.nodes))
	for _, n := range t.nodes {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b *node) int { return int(a.id - b.id) })
	return out
}

// changeNode runs f on the device of this name, under the lock.
func (t *Tailnet) changeNode(name string, f func(*node)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.nodeLocked(name)
	if err != nil {
		return err
	}
	f(n)
	t.bumpLocked()
	return nil
}

// SetIdentity makes a device another user's, or changes its tags, at once.
// hostname is the first label of the device's name.
func (t *Tailnet) SetIdentity(hostname string, id Identity) error {
	if err := id.validate(); err != nil {
		return err
	}
	return t.changeNode(hostname, func(n *node) { n.identity = id.clean() })
}

// Expire ends a device's node key now, as an administrator or time does. The
// device stays in the tailnet, marked as expired, until it logs in again.
func (t *Tailnet) Expire(hostname string) error {
	return t.changeNode(hostname, func(n *node) { n.expiry = time.Now() })
}

// Remove deletes a device from the tailnet. Its node key is forgotten.
func (t *Tailnet) Remove(hostname string) error {
	return t.changeNode(hostname, t.removeLocked)
}

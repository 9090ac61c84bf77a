// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"maps"
	"reflect"
	"slices"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/opt"
)

// netmap is what one device may know at one moment.
type netmap struct {
	self     *tailcfg.Node
	peers    map[tailcfg.NodeID]*tailcfg.Node
	profiles map[tailcfg.UserID]tailcfg.UserProfile
	dns      *tailcfg.DNSConfig
	filter   []tailcfg.FilterRule
}

// netmapLocked computes n's netmap.
func (t *Tailnet) netmapLocked(n *node, now time.Time) *netmap {
	nm := &netmap{
		peers:    map[tailcfg.NodeID]*tailcfg.Node{},
		profiles: map[tailcfg.UserID]tailcfg.UserProfile{},
		dns:      &tailcfg.DNSConfig{Proxied: true, Domains: []string{t.opts.Domain}, CertDomains: t.certDomainsLocked(n), ExtraRecords: t.serviceRecordsLocked(n)},
		filter:   t.filterLocked(n),
	}
	add := func(n *node) *tailcfg.Node {
		// The profile of every user shown must go along: a device answers
		// WhoIs with "not found" for a peer whose user it does not know.
		p := t.profileLocked(n.identity)
		nm.profiles[p.ID] = p
		return t.wireLocked(n, p.ID, now)
	}
	nm.self = add(n)
	nm.self.CapMap = t.capsLocked()
	t.addHostedLocked(n, nm.self)
	for _, p := range t.nodes {
		if p == n || !t.visibleLocked(n, p) {
			continue
		}
		peer := add(p)
		online := p.stream != nil
		peer.Online = &online
		if !online && !p.lastSeen.IsZero() {
			seen := p.lastSeen
			peer.LastSeen = &seen
		}
		peer.AllowedIPs = append(slices.Clip(peer.AllowedIPs), t.activeAddrsLocked(n, p)...)
		nm.peers[p.id] = peer
	}
	return nm
}

// wireLocked is a device as it is told to itself and to others.
func (t *Tailnet) wireLocked(n *node, user tailcfg.UserID, now time.Time) *tailcfg.Node {
	w := &tailcfg.Node{
		ID:                n.id,
		StableID:          n.stableID(),
		Name:              t.fqdn(n) + ".",
		User:              user,
		Key:               n.key,
		KeyExpiry:         n.expiry,
		Machine:           n.machine,
		DiscoKey:          n.disco,
		Addresses:         n.addrs,
		AllowedIPs:        n.addrs,
		Endpoints:         n.endpoints,
		HomeDERP:          n.homeDERP,
		Hostinfo:          n.hostinfo.View(),
		Created:           n.created,
		Cap:               n.version,
		Tags:              n.identity.Tags,
		MachineAuthorized: true,
	}
	if n.expired(now) {
		w.Expired, w.Endpoints, w.HomeDERP = true, nil, 0
	}
	return w
}

func (t *Tailnet) fqdn(n *node) string { return n.name + "." + t.opts.Domain }

// certDomainsLocked are the names for which n may get certificates.
func (t *Tailnet) certDomainsLocked(n *node) []string {
	if !t.https {
		return nil
	}
	domains := []string{t.fqdn(n)}
	for _, s := range t.sortedServicesLocked() {
		if t.hostsLocked(n, s) {
			domains = append(domains, t.serviceFQDN(s))
		}
	}
	return domains
}

// capsLocked are the attributes of every device. They switch off what would
// make a device talk to something beyond this machine.
func (t *Tailnet) capsLocked() tailcfg.NodeCapMap {
	caps := tailcfg.NodeCapMap{
		tailcfg.NodeAttrDisableUPnP:                   nil,
		tailcfg.NodeAttrDisableCaptivePortalDetection: nil,
	}
	for _, attr := range t.opts.NodeAttrs {
		caps[attr] = nil
	}
	if t.https {
		caps[tailcfg.CapabilityHTTPS] = nil
	}
	return caps
}

// full is the first message of a stream: everything.
func (nm *netmap) full(t *Tailnet) *tailcfg.MapResponse {
	return &tailcfg.MapResponse{
		Node:            nm.self,
		DERPMap:         t.relay.derpMap,
		Peers:           sortNodes(slices.Collect(maps.Values(nm.peers))),
		DNSConfig:       nm.dns,
		Domain:          t.opts.Domain,
		CollectServices: opt.False,
		PacketFilters:   nm.filters(),
		UserProfiles:    slices.Collect(maps.Values(nm.profiles)),
		// ControlTime stays unset: a device judges expiry by it.
	}
}

// since is the message that brings a device from prev to nm, or nil when
// there is nothing to say.
func (nm *netmap) since(prev *netmap) *tailcfg.MapResponse {
	res, changed := &tailcfg.MapResponse{}, false
	if !reflect.DeepEqual(prev.self, nm.self) {
		res.Node, changed = nm.self, true
	}
	if !reflect.DeepEqual(prev.dns, nm.dns) {
		res.DNSConfig, changed = nm.dns, true
	}
	if !reflect.DeepEqual(prev.filter, nm.filter) {
		res.PacketFilters, changed = nm.filters(), true
	}
	for id, p := range nm.profiles {
		if known, ok := prev.profiles[id]; !ok || !reflect.DeepEqual(known, p) {
			res.UserProfiles, changed = append(res.UserProfiles, p), true
		}
	}
	for id, p := range nm.peers {
		if !reflect.DeepEqual(prev.peers[id], p) {
			res.PeersChanged, changed = append(res.PeersChanged, p), true
		}
	}
	for id := range prev.peers {
		if nm.peers[id] == nil {
			res.PeersRemoved, changed = append(res.PeersRemoved, id), true
		}
	}
	if !changed {
		return nil
	}
	sortNodes(res.PeersChanged)
	slices.Sort(res.PeersRemoved)
	return res
}

// filters names the packet filter, which lets an empty one mean "nothing
// passes" rather than "as before".
func (nm *netmap) filters() map[string][]tailcfg.FilterRule {
	return map[string][]tailcfg.FilterRule{"base": nm.filter}
}

func sortNodes(nodes []*tailcfg.Node) []*tailcfg.Node {
	slices.SortFunc(nodes, func(a, b *tailcfg.Node) int { return int(a.ID - b.ID) })
	return nodes
}

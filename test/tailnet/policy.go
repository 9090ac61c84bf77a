// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tailscale.com/tailcfg"
)

// Grant gives devices that match Src something on devices that match Dst.
//
// Selectors are "*" (all), a login, "tag:x", "group:x" (see
// [Tailnet.SetGroups]) and "host:x" (the device whose name's first label is
// x). Dst may also be "svc:x", a Tailscale Service: its addresses on its hosts.
// ("*" has them as well, a tag of the Service does not.)
type Grant struct {
	Src []string `json:"src"`
	Dst []string `json:"dst"`
	// IP are ports which Src may reach, in the policy file's form: "*", "443",
	// "8000-8999", "tcp:443", "udp:*". They matter in a restricted network
	// only, see [Options.RestrictNetwork].
	IP []string `json:"ip,omitempty"`
	// App are the capabilities which WhoIs on a Dst device shows for Src.
	App tailcfg.PeerCapMap `json:"app,omitempty"`
}

// KubernetesGrant lets src act as a member of groups on the Kubernetes API
// server proxies dst, by the capability tailscale.com/cap/kubernetes. Without
// groups the grant impersonates none.
func KubernetesGrant(src, dst string, groups ...string) Grant {
	type impersonate struct {
		Groups []string `json:"groups,omitempty"`
	}
	rule, err := json.Marshal(map[string]impersonate{"impersonate": {groups}})
	if err != nil {
		panic(err) // strings always encode
	}
	return Grant{Src: []string{src}, Dst: []string{dst}, App: tailcfg.PeerCapMap{
		tailcfg.PeerCapabilityKubernetes: {tailcfg.RawMessage(rule)},
	}}
}

// SetGrants replaces all grants. Connected devices learn of it within
// milliseconds. An invalid selector changes nothing.
func (t *Tailnet) SetGrants(grants ...Grant) error {
	for i, g := range grants {
		if err := g.validate(); err != nil {
			return fmt.Errorf("grant %d: %w", i, err)
		}
	}
	t.change(func() { t.policy.Grants = slices.Clone(grants) })
	return nil
}

// SetGroups replaces all groups: logins by the group's name, "group:x".
func (t *Tailnet) SetGroups(groups map[string][]string) error {
	if err := validateGroups(groups); err != nil {
		return err
	}
	t.change(func() { t.policy.Groups = cloneLists(groups) })
	return nil
}

// SetTagOwners replaces the owners of tags: "tag:x" to the logins, groups and
// tags that may give it to devices. An OAuth client with tag:operator may thus
// make auth keys for the tags that tag:operator owns.
func (t *Tailnet) SetTagOwners(owners map[string][]string) error {
	if err := validateTagOwners(owners); err != nil {
		return err
	}
	t.change(func() { t.policy.TagOwners = cloneLists(owners) })
	return nil
}

// RestrictNetwork says whether packets pass only where a grant with IP allows
// them (true), or everywhere. Devices that may not exchange packets in either
// direction do not know each other.
func (t *Tailnet) RestrictNetwork(on bool) {
	t.change(func() { t.restrict = on })
}

func (g Grant) validate() error {
	if len(g.Src) == 0 || len(g.Dst) == 0 {
		return fmt.Errorf("src %q and dst %q must both name something", g.Src, g.Dst)
	}
	for _, s := range g.Src {
		if err := validateSelector(s); err != nil {
			return err
		}
	}
	for _, s := range g.Dst {
		if err := validateSelector(s); err != nil && tailcfg.AsServiceName(s) == "" {
			return err
		}
	}
	for _, spec := range g.IP {
		if _, err := parsePorts(spec); err != nil {
			return fmt.Errorf("ip: %w", err)
		}
	}
	return nil
}

func validateSelector(s string) error {
	kind, rest, _ := strings.Cut(s, ":")
	switch {
	case s == "*", strings.Contains(s, "@") && !strings.Contains(s, ":"):
		return nil
	case (kind == "group" || kind == "host") && rest != "":
		return nil
	case kind == "tag":
		return tailcfg.CheckTag(s)
	}
	return fmt.Errorf("selector %q: want *, a login with @, tag:x, group:x, host:x or, as dst, svc:x", s)
}

// matchLocked reports whether a selector names n.
func (t *Tailnet) matchLocked(selector string, n *node) bool {
	kind, rest, _ := strings.Cut(selector, ":")
	switch kind {
	case "*":
		return true
	case "tag":
		return slices.Contains(n.identity.Tags, selector)
	case "group":
		return len(n.identity.Tags) == 0 && slices.Contains(t.policy.Groups[selector], n.identity.Login)
	case "host":
		return n.name == rest
	}
	return len(n.identity.Tags) == 0 && n.identity.Login == selector
}

func (t *Tailnet) matchAnyLocked(selectors []string, n *node) bool {
	return slices.ContainsFunc(selectors, func(s string) bool { return t.matchLocked(s, n) })
}

// ownsTagLocked reports whether a login or tag may give tag to devices.
func (t *Tailnet) ownsTagLocked(owner, tag string) bool {
	for _, o := range t.policy.TagOwners[tag] {
		if o == owner || slices.Contains(t.policy.Groups[o], owner) {
			return true
		}
	}
	return false
}

// visibleLocked reports whether a and b may exchange packets in one direction
// at least: otherwise they do not learn of each other.
func (t *Tailnet) visibleLocked(a, b *node) bool {
	if !t.restrict {
		return true
	}
	return slices.ContainsFunc(t.policy.Grants, func(g Grant) bool {
		return len(g.IP) > 0 &&
			(t.matchAnyLocked(g.Src, a) && len(t.destinationsLocked(g.Dst, b)) > 0 ||
				t.matchAnyLocked(g.Src, b) && len(t.destinationsLocked(g.Dst, a)) > 0)
	})
}

// filterLocked is the packet filter of n: who may reach it, and the
// capabilities of those who do.
func (t *Tailnet) filterLocked(n *node) []tailcfg.FilterRule {
	rules := []tailcfg.FilterRule{} // not nil: no rule must mean that nothing passes
	if !t.restrict {
		rules = append(rules, tailcfg.FilterAllowAll...)
	}
	for _, g := range t.policy.Grants {
		dst := t.destinationsLocked(g.Dst, n)
		if len(dst) == 0 {
			continue
		}
		src := t.sourcesLocked(g.Src, n)
		if len(src) == 0 {
			continue
		}
		if t.restrict {
			rules = append(rules, portRules(src, dst, g.IP)...)
		}
		if len(g.App) > 0 {
			rules = append(rules, tailcfg.FilterRule{SrcIPs: src, CapGrant: []tailcfg.CapGrant{{Dsts: dst, CapMap: t.capabilitiesLocked(g.App)}}})
		}
	}
	return rules
}

// destinationsLocked are the addresses of n that selectors name: its own, and
// those of the Services that it is a host of.
func (t *Tailnet) destinationsLocked(selectors []string, n *node) []netip.Prefix {
	var dst []netip.Prefix
	if t.matchAnyLocked(selectors, n) {
		dst = append(dst, n.addrs...)
	}
	for _, s := range t.sortedServicesLocked() {
		if namesService(selectors, s) && t.hostsLocked(n, s) {
			dst = append(dst, s.addrs...)
		}
	}
	return dst
}

// sourcesLocked are the addresses of the devices other than n that match.
func (t *Tailnet) sourcesLocked(selectors []string, n *node) []string {
	var src []string
	for _, p := range t.sortedLocked() {
		if p != n && t.matchAnyLocked(selectors, p) {
			for _, a := range p.addrs {
				src = append(src, a.Addr().String())
			}
		}
	}
	return src
}

// portRules are the rules for the port specifications of one grant, which
// were validated when the grant was set.
func portRules(src []string, dst []netip.Prefix, specs []string) []tailcfg.FilterRule {
	var rules []tailcfg.FilterRule
	for _, spec := range specs {
		p, err := parsePorts(spec)
		if err != nil {
			continue
		}
		r := tailcfg.FilterRule{SrcIPs: src, IPProto: p.protos}
		for _, d := range dst {
			r.DstPorts = append(r.DstPorts, tailcfg.NetPortRange{IP: d.String(), Ports: p.ports})
		}
		rules = append(rules, r)
	}
	return rules
}

type portSpec struct {
	protos []int // empty: TCP, UDP and ICMP
	ports  tailcfg.PortRange
}

// parsePorts reads "*", "443", "1-2", "tcp:443" or "udp:*".
func parsePorts(spec string) (portSpec, error) {
	var p portSpec
	proto, ports, found := strings.Cut(spec, ":")
	switch {
	case !found:
		ports = spec
	case proto == "tcp":
		p.protos = []int{6}
	case proto == "udp":
		p.protos = []int{17}
	default:
		return p, fmt.Errorf("%q: unknown protocol %q, want tcp or udp", spec, proto)
	}
	if ports == "*" {
		p.ports = tailcfg.PortRangeAny
		return p, nil
	}
	first, last, isRange := strings.Cut(ports, "-")
	if !isRange {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || from > to {
		return p, fmt.Errorf("%q: want *, a port or a range of ports", spec)
	}
	p.ports = tailcfg.PortRange{First: uint16(from), Last: uint16(to)}
	return p, nil
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"tailscale.com/tailcfg"
)

// SetServiceApproval says, as an administrator does in Tailscale's console,
// that a device may be a host of a Service, or that it may not, whatever the
// policy's autoApprovers say. hostname is the first label of the device's
// name. Deleting the Service forgets it.
func (t *Tailnet) SetServiceApproval(service, hostname string, approved bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.services[tailcfg.ServiceName(service)]
	if s == nil {
		return fmt.Errorf("%s: %w", service, errNoService)
	}
	n, err := t.nodeLocked(hostname)
	if err != nil {
		return err
	}
	s.approval[n.id] = approved
	t.bumpLocked()
	return nil
}

// SetAutoApprovers replaces the policy's autoApprovers for Services. nil
// approves every host that has one of the Service's tags; an empty, non-nil
// value approves none.
func (t *Tailnet) SetAutoApprovers(a *AutoApprovers) error {
	if err := a.validate(); err != nil {
		return err
	}
	t.change(func() { t.policy.AutoApprovers = a.clone() })
	return nil
}

// hostsLocked reports whether n is an approved host of s: it has the Service's
// addresses and may get certificates for its name. It is one before it
// advertises the Service, and stays one when it withdraws.
func (t *Tailnet) hostsLocked(n *node, s *service) bool {
	if len(n.identity.Tags) == 0 || !s.known[n.id] {
		return false
	}
	if approved, ok := s.approval[n.id]; ok {
		return approved
	}
	allowed := s.spec.Tags
	if a := t.policy.AutoApprovers; a != nil {
		allowed = a.Services[string(s.name)]
		for _, tag := range s.spec.Tags {
			allowed = append(slices.Clip(allowed), a.Services[tag]...)
		}
	}
	return slices.ContainsFunc(n.identity.Tags, func(tag string) bool { return slices.Contains(allowed, tag) })
}

// servesLocked reports whether clients of s may be sent to n.
func (t *Tailnet) servesLocked(n *node, s *service, now time.Time) bool {
	return !n.removed && !n.expired(now) && n.adverts[s.name] && t.hostsLocked(n, s)
}

// electLocked chooses the host that gets the clients of each Service. It stays
// the same for as long as it serves; the next is the one that joined first.
func (t *Tailnet) electLocked() {
	now, nodes := time.Now(), t.sortedLocked()
	for _, s := range t.services {
		for _, n := range nodes {
			// A device may be a host, and get a certificate, before clients are sent to it.
			if _, configured := n.adverts[s.name]; configured {
				s.known[n.id] = true
			}
		}
		if s.active != nil && t.servesLocked(s.active, s, now) {
			continue
		}
		s.active = nil
		if i := slices.IndexFunc(nodes, func(n *node) bool { return t.servesLocked(n, s, now) }); i >= 0 {
			s.active = nodes[i]
		}
	}
}

// followAdverts keeps what n advertises up to date until ctx ends, which is
// when its stream does. A device tells a hash of its Services by itself, and
// the Services when it is asked.
func (t *Tailnet) followAdverts(ctx context.Context, n *node) {
	var seen *tailcfg.Hostinfo
	hash := "" // of the last answer, which may be newer than what was seen
	for {
		t.mu.Lock()
		changed, info := t.changed, n.hostinfo
		t.mu.Unlock()
		if info != seen && info.ServicesHash != hash {
			answer, err := t.askServices(ctx, n)
			if err == nil {
				hash = answer.ServicesHash
				t.setAdverts(ctx, n, answer)
			} else {
				t.opts.Logf("asking %s for its services: %v", info.Hostname, err)
			}
		}
		seen = info
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// setAdverts notes what n has configured and advertises, unless ctx has
// ended: then another stream's answers count.
func (t *Tailnet) setAdverts(ctx context.Context, n *node, answer *tailcfg.C2NVIPServicesResponse) {
	adverts := map[tailcfg.ServiceName]bool{}
	for _, s := range answer.VIPServices {
		adverts[s.Name] = s.Active
	}
	t.change(func() {
		if ctx.Err() == nil {
			n.adverts = adverts
		}
	})
}

// servicesTimeout is how long a device may take to tell its Services.
const servicesTimeout = 10 * time.Second

func (t *Tailnet) askServices(ctx context.Context, n *node) (*tailcfg.C2NVIPServicesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, servicesTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://c2n/vip-services", nil)
	if err != nil {
		return nil, err
	}
	res, err := t.ask(ctx, n, req)
	if err != nil {
		return nil, err
	}
	answer := &tailcfg.C2NVIPServicesResponse{}
	err = json.NewDecoder(res.Body).Decode(answer)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return nil, fmt.Errorf("reading its answer, %s: %w", res.Status, err)
	}
	return answer, nil
}

// hostedLocked are the addresses of the Services that n is an approved host of.
func (t *Tailnet) hostedLocked(n *node) tailcfg.ServiceIPMappings {
	hosted := tailcfg.ServiceIPMappings{}
	for _, s := range t.services {
		if t.hostsLocked(n, s) {
			for _, p := range s.addrs {
				hosted[s.name] = append(hosted[s.name], p.Addr())
			}
		}
	}
	return hosted
}

// addHostedLocked tells a device of itself which Services it is a host of.
func (t *Tailnet) addHostedLocked(n *node, self *tailcfg.Node) {
	hosted := t.hostedLocked(n)
	if len(hosted) == 0 {
		return
	}
	mappings, err := json.Marshal(hosted)
	if err != nil {
		panic(err) // names and addresses always encode
	}
	self.CapMap[tailcfg.NodeAttrServiceHost] = []tailcfg.RawMessage{tailcfg.RawMessage(mappings)}
	self.AllowedIPs = slices.Clip(self.AllowedIPs)
	for _, s := range t.sortedServicesLocked() {
		if hosted[s.name] != nil {
			self.AllowedIPs = append(self.AllowedIPs, s.addrs...)
		}
	}
}

// activeAddrsLocked are the addresses of Services which viewer reaches by host.
func (t *Tailnet) activeAddrsLocked(viewer, host *node) []netip.Prefix {
	var addrs []netip.Prefix
	for _, s := range t.sortedServicesLocked() {
		if s.active == host && !t.hostsLocked(viewer, s) && t.mayReachLocked(viewer, s) {
			addrs = append(addrs, s.addrs...)
		}
	}
	return addrs
}

// mayReachLocked reports whether n may send packets to s.
func (t *Tailnet) mayReachLocked(n *node, s *service) bool {
	return !t.restrict || slices.ContainsFunc(t.policy.Grants, func(g Grant) bool {
		return len(g.IP) > 0 && t.matchAnyLocked(g.Src, n) && namesService(g.Dst, s)
	})
}

func namesService(selectors []string, s *service) bool {
	return slices.Contains(selectors, "*") || slices.Contains(selectors, string(s.name))
}

// serviceRecordsLocked are the DNS records of the Services that n may reach or
// is a host of.
func (t *Tailnet) serviceRecordsLocked(n *node) []tailcfg.DNSRecord {
	var records []tailcfg.DNSRecord
	for _, s := range t.sortedServicesLocked() {
		if !t.mayReachLocked(n, s) && !t.hostsLocked(n, s) {
			continue
		}
		for _, p := range s.addrs {
			records = append(records, tailcfg.DNSRecord{Name: t.serviceFQDN(s), Value: p.Addr().String()})
		}
	}
	return records
}

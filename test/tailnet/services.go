// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	tailscale "tailscale.com/client/tailscale/v2"
	"tailscale.com/net/tsaddr"
	"tailscale.com/tailcfg"
)

// service is a Tailscale Service. All of it is guarded by Tailnet.mu.
type service struct {
	spec  tailscale.VIPService // its slices and maps are never changed
	name  tailcfg.ServiceName
	addrs []netip.Prefix // of Addrs in spec

	known    map[tailcfg.NodeID]bool // devices that have configured it
	approval map[tailcfg.NodeID]bool // an administrator's word on them
	active   *node                   // where clients are sent; nil: nowhere
}

// errNoService says that a Service does not exist.
var errNoService = errors.New("service not found")

// SetService creates a Tailscale Service, or replaces the one of the same name,
// as an administrator does in Tailscale's console. Without Addrs it keeps those
// it has, or gets new ones: an IPv4 and an IPv6 address. What an OAuth client
// may do is not asked.
func (t *Tailnet) SetService(s tailscale.VIPService) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := t.setServiceLocked(s)
	return err
}

func (t *Tailnet) setServiceLocked(spec tailscale.VIPService) (*service, error) {
	if err := validateService(spec); err != nil {
		return nil, err
	}
	name := tailcfg.ServiceName(spec.Name)
	addrs, err := t.serviceAddrsLocked(name, spec.Addrs)
	if err != nil {
		return nil, fmt.Errorf("service %s: %w", name, err)
	}
	s := t.services[name]
	if s == nil {
		s = &service{name: name, known: map[tailcfg.NodeID]bool{}, approval: map[tailcfg.NodeID]bool{}}
		t.services[name] = s
	}
	s.addrs = addrs
	s.spec = cloneService(spec)
	s.spec.Addrs = nil
	for _, a := range addrs {
		s.spec.Addrs = append(s.spec.Addrs, a.Addr().String())
	}
	t.bumpLocked()
	return s, nil
}

// serviceAddrsLocked are the addresses of a Service that asks for want.
func (t *Tailnet) serviceAddrsLocked(name tailcfg.ServiceName, want []string) ([]netip.Prefix, error) {
	if len(want) == 0 {
		if s := t.services[name]; s != nil {
			return s.addrs, nil
		}
		return t.nextAddrsLocked(), nil
	}
	var addrs []netip.Prefix
	for _, text := range want {
		a, err := netip.ParseAddr(text)
		switch {
		case err != nil || !tsaddr.IsTailscaleIP(a):
			return nil, fmt.Errorf("address %q is not one of a tailnet: want one of %s or %s", text, tsaddr.CGNATRange(), tsaddr.TailscaleULARange())
		case t.addrTakenLocked(name, a):
			return nil, fmt.Errorf("address %s is in use", a)
		}
		addrs = append(addrs, netip.PrefixFrom(a, a.BitLen()))
	}
	return addrs, nil
}

// addrTakenLocked reports whether a device or another Service has an address.
func (t *Tailnet) addrTakenLocked(name tailcfg.ServiceName, a netip.Addr) bool {
	p := netip.PrefixFrom(a, a.BitLen())
	for _, n := range t.nodes {
		if slices.Contains(n.addrs, p) {
			return true
		}
	}
	for _, s := range t.services {
		if s.name != name && slices.Contains(s.addrs, p) {
			return true
		}
	}
	return false
}

// DeleteService deletes a Tailscale Service, such as "svc:kube", with what was
// approved for it. Devices that advertise it are its hosts again if it comes
// back and they are approved.
func (t *Tailnet) DeleteService(name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.deleteServiceLocked(name)
}

func (t *Tailnet) deleteServiceLocked(name string) error {
	key := tailcfg.ServiceName(name)
	if t.services[key] == nil {
		return errNoService
	}
	delete(t.services, key)
	t.bumpLocked()
	return nil
}

// sortedServicesLocked returns the Services by name.
func (t *Tailnet) sortedServicesLocked() []*service {
	return slices.SortedFunc(maps.Values(t.services), func(a, b *service) int {
		return strings.Compare(string(a.name), string(b.name))
	})
}

func (t *Tailnet) serviceFQDN(s *service) string {
	return s.name.WithoutPrefix() + "." + t.opts.Domain
}

// anyPorts in place of ports lets hosts serve what they want.
const anyPorts = "do-not-validate"

func validateService(s tailscale.VIPService) error {
	if err := tailcfg.ServiceName(s.Name).Validate(); err != nil {
		return err
	}
	if len(s.Ports) == 0 {
		return fmt.Errorf("service %s: ports must not be empty", s.Name)
	}
	for _, port := range s.Ports {
		if port == anyPorts && len(s.Ports) == 1 {
			continue
		}
		var p tailcfg.ProtoPortRange
		if err := p.UnmarshalText([]byte(port)); err != nil || p.Proto == 0 {
			return fmt.Errorf("service %s: port %q is not valid: want a protocol and a port or a range of them, such as tcp:443", s.Name, port)
		}
	}
	for _, tag := range s.Tags {
		if err := tailcfg.CheckTag(tag); err != nil {
			return fmt.Errorf("service %s: tag %q: %w", s.Name, tag, err)
		}
	}
	return nil
}

func cloneService(s tailscale.VIPService) tailscale.VIPService {
	s.Addrs, s.Ports, s.Tags = slices.Clone(s.Addrs), slices.Clone(s.Ports), slices.Clone(s.Tags)
	s.Annotations = maps.Clone(s.Annotations)
	return s
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"fmt"

	tailscale "tailscale.com/client/tailscale/v2"
)

// ServiceStatus is what the control server knows of a Tailscale Service.
// Devices are given by name, the first label under the tailnet's domain, in
// the order in which they joined.
type ServiceStatus struct {
	tailscale.VIPService          // as the HTTP API shows it
	FQDN                 string   // without a dot at its end
	Advertising          []string // devices that are online and offer to be hosts
	Approved             []string // devices that may be hosts; some may not advertise it yet, or not any more
	Active               string   // the device to which clients are sent; empty: none
}

// Services lists the tailnet's Services by name.
func (t *Tailnet) Services() []ServiceStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []ServiceStatus
	for _, s := range t.sortedServicesLocked() {
		out = append(out, t.serviceStatusLocked(s))
	}
	return out
}

func (t *Tailnet) serviceStatusLocked(s *service) ServiceStatus {
	st := ServiceStatus{VIPService: cloneService(s.spec), FQDN: t.serviceFQDN(s)}
	for _, n := range t.sortedLocked() {
		if n.adverts[s.name] {
			st.Advertising = append(st.Advertising, n.name)
		}
		if t.hostsLocked(n, s) {
			st.Approved = append(st.Approved, n.name)
		}
	}
	if s.active != nil {
		st.Active = s.active.name
	}
	return st
}

// WaitService waits until done, which gets the Service of this name, is true,
// or ctx ends. A Service that does not exist is the zero value.
func (t *Tailnet) WaitService(ctx context.Context, name string, done func(ServiceStatus) bool) error {
	for {
		var status ServiceStatus
		t.mu.Lock()
		changed := t.changed
		for _, s := range t.services {
			if s.spec.Name == name {
				status = t.serviceStatusLocked(s)
			}
		}
		t.mu.Unlock()
		if done(status) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; it is %+v", name, ctx.Err(), status)
		case <-changed:
		}
	}
}

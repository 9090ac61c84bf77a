// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// DeviceStatus is what the control server knows of a device.
type DeviceStatus struct {
	ID        string // stable, such as "n1CNTRL"
	Name      string // first label under the tailnet's domain
	FQDN      string // without a dot at its end
	Hostname  string // what the device calls itself
	Addrs     []netip.Addr
	Identity  Identity
	Online    bool // it holds a stream to the control server
	Expired   bool
	Ephemeral bool
}

// Devices lists the tailnet's devices in the order in which they joined,
// those of other processes included.
func (t *Tailnet) Devices() []DeviceStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.statusLocked()
}

func (t *Tailnet) statusLocked() []DeviceStatus {
	var out []DeviceStatus
	for _, n := range t.sortedLocked() {
		s := DeviceStatus{
			ID: string(n.stableID()), Name: n.name, FQDN: t.fqdn(n), Hostname: n.hostname, Identity: n.identity,
			Online: n.stream != nil, Expired: n.expired(time.Now()), Ephemeral: n.ephemeral,
		}
		for _, a := range n.addrs {
			s.Addrs = append(s.Addrs, a.Addr())
		}
		out = append(out, s)
	}
	return out
}

// WaitDevices waits until done, which gets what [Tailnet.Devices] returns, is
// true, or ctx ends.
func (t *Tailnet) WaitDevices(ctx context.Context, done func([]DeviceStatus) bool) error {
	for {
		t.mu.Lock()
		changed, devices := t.changed, t.statusLocked()
		t.mu.Unlock()
		if done(devices) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for devices: %w; there are %+v", ctx.Err(), devices)
		case <-changed:
		}
	}
}

// WaitOnline waits until the device of this name is online, or until it is
// not. A device that does not exist is offline.
func (t *Tailnet) WaitOnline(ctx context.Context, name string, online bool) error {
	return t.WaitDevices(ctx, func(devices []DeviceStatus) bool {
		for _, d := range devices {
			if d.Name == name {
				return d.Online == online
			}
		}
		return !online
	})
}

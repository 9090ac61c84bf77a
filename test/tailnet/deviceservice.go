// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"tailscale.com/tailcfg"
)

// WaitServiceHost waits until connections from this device to a Service, such as
// "svc:kube", go to the host of this name, or ctx ends. An empty host means to
// none: it has withdrawn, or the Service is gone.
func (d *Device) WaitServiceHost(ctx context.Context, service, host string) error {
	var last error
	name := tailcfg.ServiceName(service).WithoutPrefix() + "." + d.t.opts.Domain
	var via string
	err := poll(ctx, func() bool {
		var addr netip.Addr
		if addr, last = d.lookup(ctx, name); last != nil {
			return host == ""
		}
		via, last = d.route(ctx, addr)
		return last == nil && via == host
	})
	if err != nil {
		return errors.Join(fmt.Errorf("waiting until %s reaches %s by %q, not %q: %w", d.name, service, host, via, err), last)
	}
	return nil
}

// route is the name of the peer by which d sends packets to addr, or empty.
func (d *Device) route(ctx context.Context, addr netip.Addr) (string, error) {
	status, err := d.local.Status(ctx)
	if err != nil {
		return "", err
	}
	for _, p := range status.Peer {
		if p.AllowedIPs != nil && slices.Contains(p.AllowedIPs.AsSlice(), netip.PrefixFrom(addr, addr.BitLen())) {
			name, _, _ := strings.Cut(p.DNSName, ".")
			return name, nil
		}
	}
	return "", nil
}

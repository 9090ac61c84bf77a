// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
)

// Device is a node in this process, by tsnet.
type Device struct {
	t      *Tailnet
	name   string
	server *tsnet.Server
	local  *local.Client
	addrs  []netip.Addr
	client *http.Client
	proxy  *url.URL

	proxyListener net.Listener

	closeOnce sync.Once
	closeErr  error
}

// Device adds a device to the tailnet and returns when it is up and its peers
// can reach it. ctx bounds that, not the device's life.
func (t *Tailnet) Device(ctx context.Context, hostname string, id Identity) (_ *Device, err error) {
	if err := id.validate(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(t.dir, "device-")
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", hostname, err)
	}
	d := &Device{t: t, server: &tsnet.Server{
		Dir: filepath.Join(dir, "state"), Hostname: hostname, ControlURL: t.URL(), AuthKey: t.AuthKey(id),
		UserLogf: logger.WithPrefix(t.opts.Logf, hostname+": "), Logf: logger.WithPrefix(t.opts.Logf, hostname+": "),
	}}
	if err := os.Mkdir(d.server.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("device %s: %w", hostname, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("device %s: %w", hostname, err), d.Close())
		}
	}()
	t.mu.Lock()
	t.devices[d] = false
	t.mu.Unlock()
	status, err := d.server.Up(ctx)
	if err != nil {
		return nil, err
	}
	d.addrs = status.TailscaleIPs
	d.name, _, _ = strings.Cut(status.Self.DNSName, ".")
	if err := waitHomeDERP(ctx, d.server); err != nil {
		return nil, err
	}
	if d.local, err = d.server.LocalClient(); err != nil {
		return nil, err
	}
	if err := d.startProxy(ctx); err != nil {
		return nil, err
	}
	d.client = &http.Client{Transport: &http.Transport{
		DialContext:       d.Dial,
		TLSClientConfig:   &tls.Config{RootCAs: t.Roots(), MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
	}}
	if err := d.waitKnown(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// waitKnown waits until d and the other devices of this process know each
// other: a device drops what a stranger sends, and the stranger tries again
// only seconds later.
func (d *Device) waitKnown(ctx context.Context) error {
	d.t.mu.Lock()
	d.t.devices[d] = true
	d.t.mu.Unlock()
	for _, other := range d.t.openDevices(true) {
		if other == d {
			continue
		}
		for _, pair := range [][2]*Device{{d, other}, {other, d}} {
			known := func(_ *apitype.WhoIsResponse, err error) bool {
				return err == nil || !d.t.acquainted(d, other)
			}
			if err := pair[0].WaitWhoIs(ctx, pair[1].addrs[0].String(), known); err != nil {
				return err
			}
		}
	}
	return nil
}

// acquainted reports whether two devices are online and should know each other.
func (t *Tailnet) acquainted(a, b *Device) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, m := t.nodeOfLocked(a), t.nodeOfLocked(b)
	return n != nil && m != nil && n.stream != nil && m.stream != nil && t.visibleLocked(n, m)
}

// nodeOfLocked is the node of d, or nil if it was removed. Another device may
// have its name by then.
func (t *Tailnet) nodeOfLocked(d *Device) *node {
	for _, n := range t.nodes {
		if n.addrs[0].Addr() == d.addrs[0] {
			return n
		}
	}
	return nil
}

// waitHomeDERP waits until s is connected to its DERP region: until then the
// DERP server drops what peers send to s to find a path.
func waitHomeDERP(ctx context.Context, s *tsnet.Server) error {
	health, sock := s.Sys().HealthTracker.Get(), s.Sys().MagicSock.Get()
	err := poll(ctx, func() bool {
		r := sock.GetLastNetcheckReport(ctx)
		return r != nil && r.PreferredDERP != 0 && !health.GetDERPRegionReceivedTime(r.PreferredDERP).IsZero()
	})
	if err != nil {
		return fmt.Errorf("waiting for the connection to DERP: %w", err)
	}
	return nil
}

// poll calls done every few milliseconds until it is true.
func poll(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// Name is the device's name: the first label under the tailnet's domain. It
// has a number behind it if the hostname was taken.
func (d *Device) Name() string { return d.name }

// FQDN is the device's MagicDNS name, without a dot at its end.
func (d *Device) FQDN() string { return d.name + "." + d.t.opts.Domain }

// Addrs are the device's addresses in the tailnet: IPv4, then IPv6.
func (d *Device) Addrs() []netip.Addr { return d.addrs }

// Server is the tsnet server, to listen with for example.
func (d *Device) Server() *tsnet.Server { return d.server }

// Local is a client of the device's own API, for WhoIs and the like.
func (d *Device) Local() *local.Client { return d.local }

// HTTPClient is a client from this device which trusts [Tailnet.Roots] and
// speaks HTTP/2 where the server does. It is always the same one.
func (d *Device) HTTPClient() *http.Client { return d.client }

// WaitWhoIs asks this device who the peer at addr (an address, or one with a
// port) is, until done says so or ctx ends. done gets what WhoIs returned; an
// unknown peer is [local.ErrPeerNotFound].
func (d *Device) WaitWhoIs(ctx context.Context, addr string, done func(*apitype.WhoIsResponse, error) bool) error {
	var last error
	err := poll(ctx, func() bool {
		var who *apitype.WhoIsResponse
		who, last = d.local.WhoIs(ctx, addr)
		return done(who, last)
	})
	if err != nil {
		return errors.Join(fmt.Errorf("waiting for WhoIs of %s on %s: %w", addr, d.name, err), last)
	}
	return nil
}

// Close takes the device down. The tailnet still knows it: see
// [Tailnet.Remove].
func (d *Device) Close() error {
	d.closeOnce.Do(func() {
		d.t.mu.Lock()
		delete(d.t.devices, d)
		d.t.mu.Unlock()
		if d.client != nil {
			d.client.CloseIdleConnections()
		}
		var err error
		if d.proxyListener != nil {
			err = d.proxyListener.Close()
		}
		d.closeErr = errors.Join(err, d.server.Close())
	})
	return d.closeErr
}

// closeDevices closes every device, at the same time.
func (t *Tailnet) closeDevices() error {
	open := t.openDevices(false)
	errs := make([]error, len(open))
	var all sync.WaitGroup
	for i, d := range open {
		all.Go(func() { errs[i] = d.Close() })
	}
	all.Wait()
	return errors.Join(errs...)
}

// openDevices are the devices not yet closed: all, or those that are up.
func (t *Tailnet) openDevices(up bool) []*Device {
	t.mu.Lock()
	defer t.mu.Unlock()
	var open []*Device
	for d, isUp := range t.devices {
		if isUp || !up {
			open = append(open, d)
		}
	}
	return open
}

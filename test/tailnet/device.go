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
		UserLogf: logger.Discard, Logf: logger.WithPrefix(t.opts.Logf, hostname+": "),
	}}
	if err := os.Mkdir(d.server.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("device %s: %w", hostname, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("device %s: %w", hostname, err), d.Close())
		}
	}()
	t.change(func() { t.devices[d] = true })
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
	addr, credential, _, err := d.server.Loopback()
	if err != nil {
		return nil, fmt.Errorf("starting the SOCKS5 proxy: %w", err)
	}
	d.proxy = &url.URL{Scheme: "socks5", User: url.UserPassword("tsnet", credential), Host: addr}
	d.client = &http.Client{Transport: &http.Transport{
		DialContext:       d.Dial,
		TLSClientConfig:   &tls.Config{RootCAs: t.Roots(), MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
	}}
	return d, nil
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

// Dial connects to an address in the tailnet: host:port, where host is a
// MagicDNS name, its first label or an IP address.
func (d *Device) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return d.server.Dial(ctx, network, addr)
}

// HTTPClient is a client from this device which trusts [Tailnet.Roots] and
// speaks HTTP/2 where the server does. It is always the same one.
func (d *Device) HTTPClient() *http.Client { return d.client }

// ProxyURL is a SOCKS5 proxy on loopback by which other processes connect
// from this device, for example kubectl by proxy-url in its kubeconfig. The
// credential in the URL is needed.
func (d *Device) ProxyURL() *url.URL { u := *d.proxy; return &u }

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
		d.closeErr = d.server.Close()
	})
	return d.closeErr
}

// closeDevices closes every device, at the same time.
func (t *Tailnet) closeDevices() error {
	t.mu.Lock()
	var open []*Device
	for d := range t.devices {
		open = append(open, d)
	}
	t.mu.Unlock()
	errs := make([]error, len(open))
	var all sync.WaitGroup
	for i, d := range open {
		all.Go(func() { errs[i] = d.Close() })
	}
	all.Wait()
	return errors.Join(errs...)
}

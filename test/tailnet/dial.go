// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	"tailscale.com/net/socks5"
	"tailscale.com/net/tsaddr"
	"tailscale.com/types/logger"
)

// Dial connects to host:port in the tailnet, where host is a MagicDNS name,
// its first label or an address.
//
// Anything else is refused, and a device that this one does not know is not
// reachable, as from a machine whose one network is the tailnet. (The dialer
// of tsnet turns to the machine's own network in both cases.)
func (d *Device) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	fail := func(err error) error { return fmt.Errorf("%s dialing %s: %w", d.name, addr, err) }
	target, err := d.resolve(ctx, addr)
	if err != nil {
		return nil, fail(err)
	}
	dialer := d.server.Sys().Dialer.Get()
	dial := dialer.NetstackDialTCP
	if strings.HasPrefix(network, "udp") {
		dial = dialer.NetstackDialUDP
	}
	conn, err := dial(ctx, target)
	if err != nil {
		return nil, fail(err)
	}
	return conn, nil
}

// resolve finds the tailnet's address for host:port.
func (d *Device) resolve(ctx context.Context, addr string) (netip.AddrPort, error) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port: %w", err)
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		if ip, err = d.lookup(ctx, host); err != nil {
			return netip.AddrPort{}, err
		}
	}
	if !tsaddr.IsTailscaleIP(ip) {
		return netip.AddrPort{}, errors.New("not an address of a tailnet")
	}
	return netip.AddrPortFrom(ip, uint16(port)), nil
}

// lookup asks the device's MagicDNS for the IPv4 address of a name.
func (d *Device) lookup(ctx context.Context, name string) (netip.Addr, error) {
	fqdn := canonicalName(name)
	if !strings.Contains(fqdn, ".") {
		fqdn += "." + d.t.opts.Domain
	}
	if !strings.HasSuffix(fqdn, "."+d.t.opts.Domain) {
		return netip.Addr{}, errors.New("not a name of this tailnet")
	}
	reply, _, err := d.local.QueryDNS(ctx, fqdn, "A")
	if err != nil {
		return netip.Addr{}, fmt.Errorf("asking MagicDNS: %w", err)
	}
	var m dnsmessage.Message
	if err := m.Unpack(reply); err != nil {
		return netip.Addr{}, fmt.Errorf("reading the answer of MagicDNS: %w", err)
	}
	for _, answer := range m.Answers {
		if a, ok := answer.Body.(*dnsmessage.AResource); ok {
			return netip.AddrFrom4(a.A), nil
		}
	}
	return netip.Addr{}, &net.DNSError{Err: "no such host", Name: fqdn, IsNotFound: true}
}

// startProxy serves SOCKS5 on loopback, for [Device.ProxyURL].
func (d *Device) startProxy(ctx context.Context) error {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("starting the SOCKS5 proxy: %w", err)
	}
	// Others on this machine must not act as this device.
	user, password := "device", rand.Text()
	server := &socks5.Server{
		Logf: logger.WithPrefix(d.t.opts.Logf, d.name+": socks5: "), Dialer: d.Dial,
		Username: user, Password: password,
	}
	d.proxyListener = ln
	d.proxy = &url.URL{Scheme: "socks5", User: url.UserPassword(user, password), Host: ln.Addr().String()}
	go func() { _ = server.Serve(ln) }() // it ends when Close closes the listener
	return nil
}

// ProxyURL is a SOCKS5 proxy on loopback by which other processes connect
// from this device, for example kubectl by proxy-url in its kubeconfig. It
// reaches what [Device.Dial] reaches. The credential in the URL is needed.
func (d *Device) ProxyURL() *url.URL {
	u := *d.proxy
	return &u
}

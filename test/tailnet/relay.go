// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stun"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// relay is the tailnet's one DERP region: Tailscale's own DERP server, which
// carries packets until devices have found a direct path, and STUN, by which
// they learn their addresses.
type relay struct {
	derpMap *tailcfg.DERPMap
	derp    *derpserver.Server
	http    *http.Server
	stun    net.PacketConn
	done    sync.WaitGroup
}

const derpRegion = 1

func startRelay(host string, logf func(string, ...any)) (*relay, error) {
	ca, err := processIssuer()
	if err != nil {
		return nil, err
	}
	cert, err := ca.issue(host)
	if err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	stunConn, err := lc.ListenPacket(context.Background(), "udp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	r := &relay{derp: derpserver.New(key.NewNode(), logf), stun: stunConn}
	r.http = &http.Server{
		Handler:           derpserver.Handler(r.derp),
		ReadHeaderTimeout: 10 * time.Second,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert.pair}, MinVersion: tls.VersionTLS12},
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){}, // DERP takes over HTTP/1.1 connections
		ErrorLog:          stdLog(logf),
	}
	r.derpMap = derpMap(host, ln.Addr(), stunConn.LocalAddr())
	r.done.Go(func() {
		if err := r.http.ServeTLS(ln, "", ""); !errors.Is(err, http.ErrServerClosed) {
			logf("DERP server: %v", err)
		}
	})
	r.done.Go(r.serveSTUN)
	return r, nil
}

func derpMap(host string, derp, stun net.Addr) *tailcfg.DERPMap {
	return &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{
		derpRegion: {RegionID: derpRegion, RegionCode: "test", RegionName: "Test", Nodes: []*tailcfg.DERPNode{{
			Name: "1a", RegionID: derpRegion, HostName: host, IPv4: host, IPv6: "none",
			InsecureForTests: true, // no public authority vouches for its certificate
			STUNTestIP:       host,
			DERPPort:         portOf(derp),
			STUNPort:         portOf(stun),
		}}},
	}}
}

func portOf(a net.Addr) int {
	p, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return 0
	}
	return int(p.Port())
}

func (r *relay) serveSTUN() {
	buf := make([]byte, 1500)
	for {
		n, from, err := r.stun.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		id, err := stun.ParseBindingRequest(buf[:n])
		if err != nil {
			continue
		}
		addr, err := netip.ParseAddrPort(from.String())
		if err != nil {
			continue
		}
		reply := stun.Response(id, netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()))
		_, _ = r.stun.WriteTo(reply, from) // the device asks again
	}
}

func (r *relay) close() error {
	err := errors.Join(r.derp.Close(), r.http.Close(), r.stun.Close())
	r.done.Wait()
	return err
}

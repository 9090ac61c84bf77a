// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"tailscale.com/ipn"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

// nodePort is what a Service of type NodePort is to the outside: an address whose packets
// go to a pod, and the pod's answers back to who sent them.
type nodePort struct {
	conn      *net.UDPConn
	pod       netip.AddrPort
	in, out   atomic.Int64 // packets
	perClient map[netip.AddrPort]*net.UDPConn
}

// openNodePort opens an address that leads to a UDP port of this machine.
func openNodePort(t *testing.T, port uint16) *nodePort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	noError(t, err)
	n := &nodePort{conn: conn, pod: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), perClient: map[netip.AddrPort]*net.UDPConn{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.forward()
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return n
}

func (n *nodePort) address() netip.AddrPort {
	return netip.MustParseAddrPort(n.conn.LocalAddr().String())
}

// forward carries packets until the address is closed.
func (n *nodePort) forward() {
	defer func() {
		for _, conn := range n.perClient {
			_ = conn.Close()
		}
	}()
	buffer := make([]byte, 64<<10)
	for {
		size, from, err := n.conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return
		}
		to := n.perClient[from]
		if to == nil {
			if to, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(n.pod)); err != nil {
				return
			}
			n.perClient[from] = to
			go n.answer(to, from)
		}
		n.in.Add(1)
		_, _ = to.Write(buffer[:size]) // UDP may lose it
	}
}

// answer carries the pod's packets to a client until conn is closed.
func (n *nodePort) answer(conn *net.UDPConn, client netip.AddrPort) {
	buffer := make([]byte, 64<<10)
	for {
		size, err := conn.Read(buffer)
		if err != nil {
			return
		}
		n.out.Add(1)
		_, _ = n.conn.WriteToUDPAddrPort(buffer[:size], client)
	}
}

// freeUDPPort returns a port that nobody has at the moment.
func freeUDPPort(t *testing.T) uint16 {
	t.Helper()
	conn, err := net.ListenUDP("udp", nil)
	noError(t, err)
	defer func() { _ = conn.Close() }()
	return netip.MustParseAddrPort(conn.LocalAddr().String()).Port()
}

// TestStaticEndpoints: a peer hears of the address that the operator gave a replica, and
// reaches the replica there; and at another address when the operator gives another.
func TestStaticEndpoints(t *testing.T) {
	t.Parallel()
	port := freeUDPPort(t)
	first, second := openNodePort(t, port), openNodePort(t, port)
	g := newGroup(t, shared.tailnet, 1)
	g.env = []string{fmt.Sprintf("TS_PORT=%d", port)}
	g.publish(0, first.address())
	p := g.startReady(1)[0]
	for _, address := range []*nodePort{first, second} {
		g.publish(0, address.address())
		// A device tries all addresses of a peer when it needs the peer for the first time.
		c := g.caller(tailnet.Identity{Login: unique("user") + "@example.com"}, p)
		eventually(t, fmt.Sprintf("a peer that hears of %s", address.address()), func() bool {
			return slices.Contains(c.endpointsOf(p), address.address())
		})
		if address == second && slices.Contains(c.endpointsOf(p), first.address()) {
			t.Error("the first address is not forgotten")
		}
		c.mustKubectl("version")
		eventually(t, fmt.Sprintf("a peer that is answered at %s", address.address()), func() bool {
			return address.in.Load() > 0 && address.out.Load() > 0
		})
	}
}

// publish writes a replica's static endpoint where the operator writes it.
func (g *replicaGroup) publish(ordinal int, endpoint netip.AddrPort) {
	g.t.Helper()
	_, err := shared.cluster.Client().CoreV1().Secrets(g.namespace).Patch(within(g.t, patience), g.replica(ordinal)+"-config", types.MergePatchType,
		fmt.Appendf(nil, `{"stringData":{"static-endpoints":%q}}`, endpoint), metav1.PatchOptions{})
	noError(g.t, err)
}

// endpointsOf returns the addresses of p's device that the tailnet told the caller.
func (c *caller) endpointsOf(p *proxy) []netip.AddrPort {
	c.t.Helper()
	watcher, err := c.Local().WatchIPNBus(within(c.t, patience), ipn.NotifyInitialNetMap)
	noError(c.t, err)
	defer func() { _ = watcher.Close() }()
	for {
		note, err := watcher.Next()
		noError(c.t, err)
		netmap := note.NetMap //nolint:staticcheck // the first one has it, and nothing else tells endpoints of peers
		if netmap == nil {
			continue
		}
		for _, peer := range netmap.Peers {
			if strings.TrimSuffix(peer.Name(), ".") == p.host {
				return peer.Endpoints().AsSlice()
			}
		}
		return nil
	}
}

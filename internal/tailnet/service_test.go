// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/tailcfg"
)

// While a Service is withdrawn, new connections to it wait, others do not, and none
// waits longer than it may.
func TestHoldBack(t *testing.T) {
	vip, client := netip.MustParseAddr("100.100.0.1"), netip.MustParseAddrPort("100.64.0.9:40000")
	for name, end := range map[string]func(release func()){
		"released": func(release func()) { release() },
		"twice":    func(release func()) { release(); release() },
		"limit":    func(func()) { time.Sleep(holdLimit) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newTestNode(nil, quiet)
				s := n.Service("svc:kube", 443)
				n.status.hosted = tailcfg.ServiceIPMappings{"svc:kube": {vip}}
				s.listeners[443] = &serviceListener{service: s, port: 443}
				release := s.holdBack()
				accepted := make(chan bool, 1)
				go func() {
					handler, intercept := s.accept(client, netip.AddrPortFrom(vip, 443))
					accepted <- handler != nil && intercept
				}()
				if _, intercept := s.accept(client, netip.MustParseAddrPort("100.64.0.1:443")); intercept {
					t.Error("a connection to the node itself is taken for one to the Service")
				}
				synctest.Wait()
				if len(accepted) > 0 {
					t.Fatal("a new connection did not wait")
				}
				end(release)
				if !<-accepted {
					t.Error("the connection that waited is refused")
				}
				if handler, _ := s.accept(client, netip.AddrPortFrom(vip, 443)); handler == nil {
					t.Error("a later connection is refused")
				}
				release()
			})
		})
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet_test

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/tailcfg"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

// TestRecordersInGrants: recorders are named by tags, and a device learns their addresses
// as they come and go. Addresses that the grant itself names stay.
func TestRecordersInGrants(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	server, laptop := device(t, tn, "server", proxy), device(t, tn, "laptop", alice)
	rules := tailcfg.PeerCapMap{tailcfg.PeerCapabilityKubernetes: {
		`{"impersonate":{"groups":["readers"]},"recorder":["tag:recorder"],"enforceRecorder":true}`,
		`{"recorder":["tag:recorder"],"recorderAddrs":["100.64.0.99:80"]}`,
		`{"impersonate":{"groups":["writers"]}}`,
	}}
	if err := tn.SetGrants(tailnet.Grant{Src: []string{alice.Login}, Dst: []string{"tag:proxy"}, App: rules}); err != nil {
		t.Fatal(err)
	}
	waitRecorders := func(first []netip.AddrPort) {
		t.Helper()
		want := [][]netip.AddrPort{first, {netip.MustParseAddrPort("100.64.0.99:80")}, nil}
		var diff string
		err := server.WaitWhoIs(testContext(t), laptop.Addrs()[0].String(), func(who *apitype.WhoIsResponse, err error) bool {
			diff = cmp.Diff(want, recorders(t, kubernetesRules(who, err)), cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty())
			return diff == ""
		})
		if err != nil {
			t.Fatalf("%v: %s", err, diff)
		}
	}
	waitRecorders(nil)
	recorder := device(t, tn, "recorder", tailnet.Identity{Tags: []string{"tag:recorder"}})
	var addrs []netip.AddrPort
	for _, a := range recorder.Addrs() {
		addrs = append(addrs, netip.AddrPortFrom(a, 80))
	}
	waitRecorders(addrs)
	if err := tn.Remove(recorder.Name()); err != nil {
		t.Fatal(err)
	}
	waitRecorders(nil)
}

// recorders are the addresses of recorders in each rule.
func recorders(t *testing.T, rules []tailcfg.RawMessage) [][]netip.AddrPort {
	t.Helper()
	var all [][]netip.AddrPort
	for _, rule := range rules {
		var fields struct {
			RecorderAddrs []netip.AddrPort `json:"recorderAddrs"`
		}
		if err := json.Unmarshal([]byte(rule), &fields); err != nil {
			t.Fatalf("rule %s: %v", rule, err)
		}
		all = append(all, fields.RecorderAddrs)
	}
	return all
}

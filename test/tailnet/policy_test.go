// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/tailcfg"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

const policyFile = `{
	// comments and trailing commas are fine
	"groups": {"group:ops": ["alice@example.com"]},
	"tagOwners": {"tag:proxy": ["tag:operator"]},
	"grants": [{
		"src": ["group:ops"], "dst": ["tag:proxy"], "ip": ["tcp:443", "80"],
		"app": {"tailscale.com/cap/kubernetes": [{"impersonate": {"groups": ["system:masters"]}}]},
	}],
}`

func TestParsePolicy(t *testing.T) {
	got, err := tailnet.ParsePolicy([]byte(policyFile))
	if err != nil {
		t.Fatal(err)
	}
	grant := tailnet.KubernetesGrant("group:ops", "tag:proxy", "system:masters")
	grant.IP = []string{"tcp:443", "80"}
	for _, rules := range []tailcfg.PeerCapMap{got.Grants[0].App, grant.App} {
		for _, r := range rules[tailcfg.PeerCapabilityKubernetes] {
			if strings.ReplaceAll(string(r), " ", "") != `{"impersonate":{"groups":["system:masters"]}}` {
				t.Errorf("rule = %s", r)
			}
		}
	}
	got.Grants[0].App, grant.App = nil, nil
	want := tailnet.Policy{
		Groups:    map[string][]string{"group:ops": {"alice@example.com"}},
		TagOwners: map[string][]string{"tag:proxy": {"tag:operator"}},
		Grants:    []tailnet.Grant{grant},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParsePolicyRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ file, want string }{
		"not JSON":         {`{`, "policy"},
		"unknown field":    {`{"acls": []}`, "acls"},
		"group's name":     {`{"groups": {"ops": []}}`, "group:"},
		"undefined group":  {`{"grants": [{"src": ["group:x"], "dst": ["*"]}]}`, "group:x is not defined"},
		"tag's name":       {`{"tagOwners": {"x": []}}`, "tag"},
		"unknown selector": {`{"grants": [{"src": ["autogroup:member"], "dst": ["*"]}]}`, "autogroup:member"},
		"no source":        {`{"grants": [{"dst": ["*"]}]}`, "src"},
		"unknown protocol": {`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["gre:*"]}]}`, "gre"},
		"no port":          {`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["https"]}]}`, "https"},
		"Service as src":   {`{"grants": [{"src": ["svc:x"], "dst": ["*"]}]}`, "svc:x"},
		"Service's name":   {`{"grants": [{"src": ["*"], "dst": ["svc:a.b"]}]}`, "svc:a.b"},
		"approved":         {`{"autoApprovers": {"services": {"x": ["tag:a"]}}}`, `"x" is neither`},
		"approver":         {`{"autoApprovers": {"services": {"svc:x": ["alice@example.com"]}}}`, "alice@example.com"},
		"approved routes":  {`{"autoApprovers": {"routes": {}}}`, "routes"},
		"range":            {`{"grants": [{"src": ["*"], "dst": ["*"], "ip": ["2-1"]}]}`, "2-1"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := tailnet.ParsePolicy([]byte(tc.file)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("ParsePolicy = %v, want an error with %q", err, tc.want)
			}
		})
	}
}

func TestSetPolicy(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	p, err := tailnet.ParsePolicy([]byte(policyFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := tn.SetPolicy(p); err != nil {
		t.Fatal(err)
	}
	server, laptop := device(t, tn, "server", proxy), device(t, tn, "laptop", alice)
	granted := func(who *apitype.WhoIsResponse, err error) bool { return len(kubernetesRules(who, err)) == 1 }
	if err := server.WaitWhoIs(testContext(t), laptop.Addrs()[0].String(), granted); err != nil {
		t.Error(err)
	}
	if err := tn.SetGrants(tailnet.Grant{Src: []string{"alice"}, Dst: []string{"*"}}); err == nil {
		t.Error("a login without @ was accepted")
	}
	if _, err := oauth(t, tn, "tag:operator").Keys().CreateAuthKey(testContext(t), keyRequest("tag:proxy")); err != nil {
		t.Errorf("a key for an owned tag: %v", err)
	}
}

// TestAdvertisedTags registers devices that ask for tags themselves.
func TestAdvertisedTags(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	if err := tn.SetTagOwners(map[string][]string{"tag:ci": {alice.Login}}); err != nil {
		t.Fatal(err)
	}
	single := tn.CreateKey(tailnet.KeyOptions{Identity: bob, SingleUse: true})
	if err := up(t, tn, "bobs", single, "tag:ci"); err == nil || !strings.Contains(err.Error(), "requested tags [tag:ci] are invalid or not permitted") {
		t.Errorf("bob with alice's tag: %v", err)
	}
	if err := up(t, tn, "bobs", single); err != nil {
		t.Errorf("the refusal spent the key: %v", err)
	}
	if err := up(t, tn, "alices", tn.AuthKey(alice), "tag:ci"); err != nil {
		t.Error(err)
	}
	devices := tn.Devices()
	if len(devices) != 2 || devices[1].Identity.String() != "tag:ci" {
		t.Errorf("devices = %+v, want alice's as tag:ci", devices)
	}
}

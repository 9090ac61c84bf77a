// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"tailscale.com/tailcfg"
)

func TestParseGrants(t *testing.T) {
	groups := func(names ...string) Grant { return Grant{Impersonate: &Impersonate{Groups: names}} }
	for name, tc := range map[string]struct {
		caps tailcfg.PeerCapMap
		want []Grant
	}{
		"no capabilities": {nil, nil},
		"other capabilities": {
			tailcfg.PeerCapMap{"tailscale.com/cap/file-sharing-target": nil, "example.com/cap/kubernetes": {`{"impersonate":{"groups":["x"]}}`}}, nil,
		},
		"no values":    {tailcfg.PeerCapMap{Capability: {}}, nil},
		"empty object": {grants(`{}`), []Grant{{}}},
		"everything": {
			grants(`{"impersonate":{"groups":["readers"]},"recorder":["tag:rec"],"recorderAddrs":["100.64.0.9:80","[fd7a::9]:80"],"enforceRecorder":true,"enableEvents":true}`),
			[]Grant{{
				Impersonate: &Impersonate{Groups: []string{"readers"}}, Recorder: []string{"tag:rec"},
				RecorderAddrs:   []netip.AddrPort{netip.MustParseAddrPort("100.64.0.9:80"), netip.MustParseAddrPort("[fd7a::9]:80")},
				EnforceRecorder: true, EnableEvents: true,
			}},
		},
		"several, in order": {grants(`{"impersonate":{"groups":["b"]}}`, `{"impersonate":{"groups":["a"]}}`), []Grant{groups("b"), groups("a")}},
		"unknown fields":    {grants(`{"future":{"x":[1]},"impersonate":{"groups":["a"],"extra":true}}`), []Grant{groups("a")}},
		"white space":       {grants(" \n\t{ \"impersonate\" : {\"groups\":[ \"a\" ]} }\n"), []Grant{groups("a")}},
		"system groups":     {grants(`{"impersonate":{"groups":["system:masters"]}}`), []Grant{groups("system:masters")}},
		"Unicode":           {grants(`{"impersonate":{"groups":["équipe","\u7d44"]}}`), []Grant{groups("équipe", "組")}},
		"legacy name":       {tailcfg.PeerCapMap{LegacyCapability: {`{"impersonate":{"groups":["old"]}}`}}, []Grant{groups("old")}},
		"legacy name beside an empty new one": {
			tailcfg.PeerCapMap{Capability: {}, LegacyCapability: {`{"impersonate":{"groups":["old"]}}`}}, []Grant{groups("old")},
		},
		"the new name wins": {
			tailcfg.PeerCapMap{Capability: {`{"impersonate":{"groups":["new"]}}`}, LegacyCapability: {`{"impersonate":{"groups":["old"]}}`}}, []Grant{groups("new")},
		},
		"the new name wins without groups, and what the old one says is not read": {
			tailcfg.PeerCapMap{Capability: {`{}`}, LegacyCapability: {`[`}}, []Grant{{}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseGrants(tc.caps)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("grants (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseGrantsMalformed(t *testing.T) {
	for name, raw := range map[string]tailcfg.RawMessage{
		"empty":                      ``,
		"white space":                `  `,
		"null":                       `null`,
		"array":                      `[]`,
		"string":                     `"readers"`,
		"number":                     `1`,
		"true":                       `true`,
		"not JSON":                   `{impersonate}`,
		"cut short":                  `{"impersonate":{"groups":["a"]}`,
		"two objects":                `{"impersonate":{"groups":["a"]}}{}`,
		"something after the object": `{} x`,
		"impersonate is an array":    `{"impersonate":["a"]}`,
		"groups are a string":        `{"impersonate":{"groups":"a"}}`,
		"groups are an object":       `{"impersonate":{"groups":{"a":true}}}`,
		"a group is a number":        `{"impersonate":{"groups":["a",1]}}`,
		"a group is null":            `{"impersonate":{"groups":["a",null]}}`,
		"a group is empty":           `{"impersonate":{"groups":[""]}}`,
		"a group is white space":     `{"impersonate":{"groups":[" "]}}`,
		"a group begins with space":  `{"impersonate":{"groups":[" a"]}}`,
		"a group ends with a tab":    `{"impersonate":{"groups":["a\t"]}}`,
		"a group has a line break":   `{"impersonate":{"groups":["a\r\nImpersonate-User: admin"]}}`,
		"a group has NUL":            `{"impersonate":{"groups":["a\u0000"]}}`,
		"a group is not UTF-8":       "{\"impersonate\":{\"groups\":[\"a\xff\"]}}",
		"a group has half a pair":    `{"impersonate":{"groups":["a\ud800"]}}`,
		"recorder is a string":       `{"recorder":"tag:rec"}`,
		"recorder address is a name": `{"recorderAddrs":["recorder:80"]}`,
		"recorder address, no port":  `{"recorderAddrs":["100.64.0.9"]}`,
		"enforceRecorder is text":    `{"enforceRecorder":"true"}`,
		"enableEvents is a number":   `{"enableEvents":1}`,
	} {
		for _, capability := range []tailcfg.PeerCapability{Capability, LegacyCapability} {
			t.Run(name+" under "+string(capability), func(t *testing.T) {
				got, err := ParseGrants(tailcfg.PeerCapMap{capability: {`{"impersonate":{"groups":["good"]}}`, raw}})
				if got != nil {
					t.Errorf("grants %+v, want none", got)
				}
				var grant *GrantError
				if !errors.As(err, &grant) {
					t.Fatalf("error %v, want a GrantError", err)
				}
				if grant.Index != 1 || grant.Capability != capability || grant.Unwrap() == nil {
					t.Errorf("error %+v, want one about value 1 of %q", grant, capability)
				}
				if !strings.Contains(err.Error(), `value 1 of the capability "`+string(capability)+`"`) {
					t.Errorf("the message %q does not name the grant", err)
				}
			})
		}
	}
}

// The message must tell the policy's author which group is wrong.
func TestParseGrantsNamesTheGroup(t *testing.T) {
	_, err := ParseGrants(grants(`{"impersonate":{"groups":["a","b "]}}`))
	if err == nil || !strings.Contains(err.Error(), `impersonate.groups[1] "b " has white space around it`) {
		t.Errorf("error %v", err)
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/tailcfg"
)

var testAddr = netip.MustParseAddr("100.64.0.7")

// userDevice returns WhoIs' answer for a device that belongs to a user.
func userDevice(login string, caps tailcfg.PeerCapMap) *apitype.WhoIsResponse {
	return &apitype.WhoIsResponse{
		Node:        &tailcfg.Node{Name: "laptop.tail1234.ts.net.", StableID: "n1"},
		UserProfile: &tailcfg.UserProfile{ID: 7, LoginName: login},
		CapMap:      caps,
	}
}

// taggedDevice returns WhoIs' answer for a tagged device. Tailscale reports a
// pseudo user for those, which must never become a Kubernetes user.
func taggedDevice(name string, caps tailcfg.PeerCapMap, tags ...string) *apitype.WhoIsResponse {
	return &apitype.WhoIsResponse{
		Node:        &tailcfg.Node{Name: name, StableID: "n2", Tags: tags},
		UserProfile: &tailcfg.UserProfile{LoginName: "tagged-devices"},
		CapMap:      caps,
	}
}

func grants(values ...tailcfg.RawMessage) tailcfg.PeerCapMap {
	return tailcfg.PeerCapMap{Capability: values}
}

func TestFromWhoIs(t *testing.T) {
	user := Identity{User: "alice@example.com", Node: "laptop.tail1234.ts.net", NodeID: "n1", UserID: 7, Addr: testAddr}
	recorded := user
	recorded.MustRecord, recorded.Recorders = true, []netip.AddrPort{netip.MustParseAddrPort("100.64.0.9:80")}
	enforced := user
	enforced.MustRecord = true
	several := user
	several.Recorders = []netip.AddrPort{netip.MustParseAddrPort("100.64.0.9:80"), netip.MustParseAddrPort("[fd7a::9]:80"), netip.MustParseAddrPort("100.64.0.8:80")}
	events := user
	events.Events = true
	tagged := Identity{User: "ci.tail1234.ts.net", Node: "ci.tail1234.ts.net", NodeID: "n2", Tagged: true, Addr: testAddr}
	with := func(id Identity, groups ...string) Identity {
		id.Groups = groups
		return id
	}
	carrying := func(id Identity, tags ...string) Identity {
		id.Tags = tags
		return id
	}
	other := tailcfg.PeerCapMap{"tailscale.com/cap/drive": {`[`}}
	for name, tc := range map[string]struct {
		who  *apitype.WhoIsResponse
		want Identity
	}{
		"user": {
			userDevice("alice@example.com", nil), user,
		},
		"user with a grant": {
			userDevice("alice@example.com", grants(`{"impersonate":{"groups":["readers"]}}`)), with(user, "readers"),
		},
		"groups of several grants, in the order of the policy, each once": {
			userDevice("alice@example.com", grants(
				`{"impersonate":{"groups":["b","a","b"]}}`, `{"impersonate":{"groups":["c","a"]}}`)), with(user, "b", "a", "c"),
		},
		"user with grants that give no groups": {
			userDevice("alice@example.com", grants(`{}`, `{"impersonate":{}}`, `{"impersonate":{"groups":[]}}`, `{"impersonate":null}`)), user,
		},
		"grants that only concern recording": {
			userDevice("alice@example.com", grants(`{"recorder":["tag:rec"],"recorderAddrs":["100.64.0.9:80"],"enforceRecorder":true}`)), recorded,
		},
		"one grant of many demands recording": {
			userDevice("alice@example.com", grants(`{"enforceRecorder":false}`, `{"enforceRecorder":true}`, `{"impersonate":{}}`)), enforced,
		},
		"one grant of many asks for events": {
			userDevice("alice@example.com", grants(`{"enableEvents":true}`, `{"enableEvents":false}`)), events,
		},
		"recorders of several grants, in the order of the policy, each once": {
			userDevice("alice@example.com", grants(`{"recorderAddrs":["100.64.0.9:80","[fd7a::9]:80"]}`, `{}`, `{"recorderAddrs":["100.64.0.8:80","100.64.0.9:80"]}`)), several,
		},
		"capabilities of other programs do not count, even malformed ones": {
			userDevice("alice@example.com", other), user,
		},
		"tagged device: its tags are its groups": {
			taggedDevice("ci.tail1234.ts.net.", nil, "tag:ci", "tag:prod"), with(carrying(tagged, "tag:ci", "tag:prod"), "tag:ci", "tag:prod"),
		},
		"tagged device with grants that give no groups": {
			taggedDevice("ci.tail1234.ts.net.", grants(`{"impersonate":{"groups":[]}}`), "tag:ci"), with(carrying(tagged, "tag:ci"), "tag:ci"),
		},
		"tagged device with groups: its tags are not added": {
			taggedDevice("ci.tail1234.ts.net.", grants(`{"impersonate":{"groups":["deployers"]}}`), "tag:ci"), with(carrying(tagged, "tag:ci"), "deployers"),
		},
		"name without a trailing dot": {
			taggedDevice("ci.tail1234.ts.net", nil, "tag:ci"), with(carrying(tagged, "tag:ci"), "tag:ci"),
		},
		"names are carried as they are": {
			userDevice("Zoë o'Neil+ops@example.com", nil), Identity{User: "Zoë o'Neil+ops@example.com", Node: "laptop.tail1234.ts.net", NodeID: "n1", UserID: 7, Addr: testAddr},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := FromWhoIs(testAddr, tc.who)
			if err != nil {
				t.Fatal(err)
			}
			type fields Identity // whose method Equal does not compare all of them
			if diff := cmp.Diff(fields(tc.want), fields(got), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("identity (-want +got):\n%s", diff)
			}
		})
	}
}

func TestFromWhoIsRefuses(t *testing.T) {
	expired := userDevice("alice@example.com", nil)
	expired.Node.Expired = true
	noProfile := userDevice("", nil)
	noProfile.UserProfile = nil
	for name, tc := range map[string]struct {
		who  *apitype.WhoIsResponse
		want error
	}{
		"no answer":                      {nil, ErrUnknownPeer},
		"no node":                        {&apitype.WhoIsResponse{UserProfile: &tailcfg.UserProfile{LoginName: "alice@example.com"}}, ErrUnknownPeer},
		"expired":                        {expired, ErrExpired},
		"no user profile":                {noProfile, ErrNoName},
		"empty login name":               {userDevice("", nil), ErrNoName},
		"login name with a space after":  {userDevice("alice@example.com ", nil), ErrNoName},
		"login name with a space before": {userDevice(" alice@example.com", nil), ErrNoName},
		"login name with a line break":   {userDevice("alice\r\nImpersonate-Group: system:masters", nil), ErrNoName},
		"login name with NUL":            {userDevice("alice\x00", nil), ErrNoName},
		"login name that is not UTF-8":   {userDevice("alice\xff", nil), ErrNoName},
		"tagged device without a name":   {taggedDevice("", nil, "tag:ci"), ErrNoName},
		"tagged device that is a dot":    {taggedDevice(".", nil, "tag:ci"), ErrNoName},
		"tag with a line break":          {taggedDevice("ci.tail1234.ts.net.", nil, "tag:ci", "tag:\n"), ErrNoName},
		"tag with a space after":         {taggedDevice("ci.tail1234.ts.net.", nil, "tag:ci "), ErrNoName},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := FromWhoIs(testAddr, tc.who)
			if !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
			type fields Identity
			if diff := cmp.Diff(fields{}, fields(got), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
				t.Errorf("a refusal comes with an identity (-want +got):\n%s", diff)
			}
		})
	}
}

// A grant that cannot be read must not leave the caller with fewer groups than
// the policy gives: the user name alone may be bound to something.
func TestFromWhoIsMalformedGrant(t *testing.T) {
	for name, who := range map[string]*apitype.WhoIsResponse{
		"of a user":          userDevice("alice@example.com", grants(`{"impersonate":{"groups":["readers"]}}`, `[]`)),
		"of a tagged device": taggedDevice("ci.tail1234.ts.net.", grants(`{}`, `[]`), "tag:ci"),
	} {
		t.Run(name, func(t *testing.T) {
			id, err := FromWhoIs(testAddr, who)
			var grant *GrantError
			if !errors.As(err, &grant) {
				t.Fatalf("error %v, want a GrantError", err)
			}
			if grant.Index != 1 || grant.Capability != Capability {
				t.Errorf("the error names value %d of %q, want 1 of %q", grant.Index, grant.Capability, Capability)
			}
			if id.User != "" || id.Groups != nil {
				t.Errorf("a refusal comes with the identity %+v", id)
			}
		})
	}
}

func TestEqual(t *testing.T) {
	base := Identity{User: "u", Groups: []string{"a", "b"}, Node: "n", NodeID: "1", Addr: testAddr}
	for name, tc := range map[string]struct {
		change func(*Identity)
		want   bool
	}{
		"the same":             {func(*Identity) {}, true},
		"a renamed device":     {func(id *Identity) { id.Node = "other" }, true},
		"another address":      {func(id *Identity) { id.Addr = netip.MustParseAddr("fd7a::1") }, true},
		"another user":         {func(id *Identity) { id.User = "v" }, false},
		"another device":       {func(id *Identity) { id.NodeID = "2" }, false},
		"tagged now":           {func(id *Identity) { id.Tagged = true }, false},
		"to be recorded now":   {func(id *Identity) { id.MustRecord = true }, false},
		"other recorders":      {func(id *Identity) { id.Recorders = []netip.AddrPort{netip.MustParseAddrPort("100.64.0.9:80")} }, true},
		"a group more":         {func(id *Identity) { id.Groups = []string{"a", "b", "c"} }, false},
		"a group less":         {func(id *Identity) { id.Groups = []string{"a"} }, false},
		"no groups":            {func(id *Identity) { id.Groups = nil }, false},
		"another order":        {func(id *Identity) { id.Groups = []string{"b", "a"} }, false},
		"copied groups":        {func(id *Identity) { id.Groups = []string{"a", "b"} }, true},
		"another group's name": {func(id *Identity) { id.Groups = []string{"a", "B"} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			other := base
			tc.change(&other)
			if got := base.Equal(other); got != tc.want {
				t.Errorf("Equal is %v, want %v", got, tc.want)
			}
			if got := other.Equal(base); got != tc.want {
				t.Errorf("Equal the other way round is %v, want %v", got, tc.want)
			}
		})
	}
}

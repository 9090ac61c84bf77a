// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/tailcfg"
)

// arrives reports whether name, sent in a header, is the same name on the other
// side. It says so in other words than the code under test.
func arrives(name string) bool {
	h := http.Header{"X": {name}}
	var wire strings.Builder
	if err := h.Write(&wire); err != nil {
		return false
	}
	return name != "" && httpguts.ValidHeaderFieldValue(name) && utf8.ValidString(name) && wire.String() == "X: "+name+"\r\n"
}

func FuzzParseGrants(f *testing.F) {
	f.Fuzz(func(t *testing.T, raw []byte, legacy bool) {
		name := Capability
		if legacy {
			name = LegacyCapability
		}
		got, err := ParseGrants(tailcfg.PeerCapMap{name: {tailcfg.RawMessage(raw)}})
		if err != nil {
			var grant *GrantError
			if !errors.As(err, &grant) || grant.Capability != name || grant.Index != 0 || got != nil {
				t.Fatalf("grants %+v, error %#v", got, err)
			}
			return
		}
		if len(got) != 1 {
			t.Fatalf("%d grants of one value", len(got))
		}
		if got[0].Impersonate == nil {
			return
		}
		for _, group := range got[0].Impersonate.Groups {
			if !arrives(group) {
				t.Fatalf("group %q cannot be carried", group)
			}
		}
	})
}

// A caller has a name and groups that reach the API server as they are, or no
// identity at all; and it is never somebody else's.
func FuzzFromWhoIs(f *testing.F) {
	f.Fuzz(func(t *testing.T, login, node, tags string, raw []byte) {
		who := &apitype.WhoIsResponse{
			Node:        &tailcfg.Node{Name: node},
			UserProfile: &tailcfg.UserProfile{LoginName: login},
			CapMap:      grants(tailcfg.RawMessage(raw)),
		}
		if tags != "" {
			who.Node.Tags = strings.Split(tags, ",")
		}
		id, err := FromWhoIs(testAddr, who)
		if err != nil {
			if id.User != "" || id.Groups != nil {
				t.Fatalf("error %v with identity %+v", err, id)
			}
			return
		}
		want := login
		if tags != "" {
			want = strings.TrimSuffix(node, ".")
		}
		if id.User != want || id.Addr != testAddr {
			t.Fatalf("user %q at %s, want %q at %s", id.User, id.Addr, want, testAddr)
		}
		for i, name := range append([]string{id.User}, id.Groups...) {
			if !arrives(name) {
				t.Fatalf("name %q cannot be carried", name)
			}
			if i > 0 && slices.Contains(id.Groups[i:], name) && who.Node.Tags == nil {
				t.Fatalf("group %q is there twice", name)
			}
		}
	})
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// TestNarrow: a client can ask for fewer of the caller's groups, and for nothing else.
func TestNarrow(t *testing.T) {
	caller := identity.Identity{User: "alice@example.com", Groups: []string{"readers", "writers", "admins"}}
	self := []string{caller.User}
	for name, tc := range map[string]struct {
		header http.Header
		groups []string
		wrong  string // of a refusal
	}{
		"asks for nothing":       {http.Header{"Accept": {"*/*"}}, caller.Groups, ""},
		"itself without groups":  {http.Header{"Impersonate-User": self}, nil, ""},
		"itself in one group":    {http.Header{"Impersonate-User": self, "Impersonate-Group": {"writers"}}, []string{"writers"}, ""},
		"itself in all groups":   {http.Header{"Impersonate-User": self, "Impersonate-Group": caller.Groups}, caller.Groups, ""},
		"somebody else":          {http.Header{"Impersonate-User": {"boss"}}, nil, "You can only be yourself"},
		"itself and another":     {http.Header{"Impersonate-User": {caller.User, "boss"}}, nil, "You can only be yourself"},
		"itself in capitals":     {http.Header{"Impersonate-User": {"Alice@example.com"}}, nil, "You can only be yourself"},
		"nobody":                 {http.Header{"Impersonate-User": {""}}, nil, "You can only be yourself"},
		"groups of nobody":       {http.Header{"Impersonate-Group": {"readers"}}, nil, "You can only be yourself"},
		"a group it has not":     {http.Header{"Impersonate-User": self, "Impersonate-Group": {"readers", "system:masters"}}, nil, `You do not have the group "system:masters"; --as-group takes those that you have: readers, writers, admins.`},
		"a group again":          {http.Header{"Impersonate-User": self, "Impersonate-Group": {"admins", "readers", "admins"}}, []string{"readers", "admins"}, ""},
		"a list of groups":       {http.Header{"Impersonate-User": self, "Impersonate-Group": {"readers,writers"}}, nil, "You do not have the group"},
		"a UID":                  {http.Header{"Impersonate-User": self, "Impersonate-Uid": {"1"}}, nil, "The header Impersonate-Uid is not supported"},
		"an extra":               {http.Header{"Impersonate-User": self, "Impersonate-Extra-Scopes": {"x"}}, nil, "The header Impersonate-Extra-Scopes is not supported"},
		"a header of the future": {http.Header{"Impersonate-Tomorrow": {"x"}}, nil, "The header Impersonate-Tomorrow is not supported"},
		"in lower case":          {http.Header{"impersonate-user": self}, nil, "is not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, f := narrow(tc.header, caller, false); (f != nil) != (name != "asks for nothing") {
				t.Errorf("where it is not allowed: refusal %v", f)
			}
			groups, f := narrow(tc.header, caller, true)
			if tc.wrong != "" {
				if f == nil || groups != nil || f.code != http.StatusForbidden || !strings.Contains(f.message, tc.wrong) {
					t.Errorf("groups %v, refusal %+v, want one that says %q", groups, f, tc.wrong)
				}
				return
			}
			if diff := cmp.Diff(tc.groups, groups, cmpopts.EquateEmpty()); diff != "" || f != nil {
				t.Errorf("refusal %v, groups (-want +got):\n%s", f, diff)
			}
		})
	}
}

// What a client asks for is what the API server gets and the log has.
func TestNarrowedRequest(t *testing.T) {
	api := newAPIServer(t, nil)
	r := start(t, api, options{})
	r.proxy.config.FewerGroups = true
	res, _ := r.get(t, alice.Addr, "/api/v1/pods", http.Header{"Impersonate-User": {alice.User}, "Impersonate-Group": alice.Groups[:1]})
	if res.StatusCode != http.StatusOK {
		t.Fatalf("status %s", res.Status)
	}
	h := api.only(t).Header
	if diff := cmp.Diff(alice.Groups[:1], h["Impersonate-Group"]); diff != "" || h.Get("Impersonate-User") != alice.User {
		t.Errorf("user %q, groups (-want +got):\n%s", h.Get("Impersonate-User"), diff)
	}
	line := r.logs.lines(t, "request", 1)[0]
	if diff := cmp.Diff([]any{alice.Groups[0]}, line["asGroups"]); diff != "" {
		t.Errorf("asGroups (-want +got):\n%s\nline %v", diff, line)
	}

	r = start(t, newAPIServer(t, nil), options{})
	r.proxy.config.FewerGroups = true
	res, body := r.get(t, bob.Addr, "/api/v1/pods", http.Header{"Impersonate-User": {bob.User}, "Impersonate-Group": alice.Groups[:1]})
	r.checkRefusal(t, res, body, 403, metav1.StatusReasonForbidden, reasonImpersonation, "--as-group takes those that you have: none.")
}

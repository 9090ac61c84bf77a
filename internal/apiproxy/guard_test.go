// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"testing"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// closeNoted is a body that notes that it was closed.
type closeNoted struct {
	io.Reader
	closed bool
}

func (b *closeNoted) Close() error {
	b.closed = true
	return nil
}

// The guard stands alone: whatever goes wrong before it, only a request that
// impersonates exactly its caller reaches the proxy's credentials.
func TestImpersonationGuard(t *testing.T) {
	known := func(id identity.Identity) context.Context { return withCall(context.Background(), &call{caller: id}) }
	impersonating := func(id identity.Identity) http.Header {
		h := http.Header{"Accept": {"*/*"}}
		impersonate(h, id)
		return h
	}
	with := func(h http.Header, name string, values ...string) http.Header {
		h[name] = values
		return h
	}
	without := func(h http.Header, name string) http.Header {
		delete(h, name)
		return h
	}
	for name, tc := range map[string]struct {
		ctx    context.Context //nolint:containedctx // a case of a table
		header http.Header
		passes bool
	}{
		"user with groups":    {known(alice), impersonating(alice), true},
		"user without groups": {known(bob), impersonating(bob), true},
		"tagged device":       {known(ci), impersonating(ci), true},

		"no call":                                {context.Background(), impersonating(alice), false},
		"no call and no headers":                 {context.Background(), http.Header{}, false},
		"a caller without a user":                {known(identity.Identity{}), impersonating(alice), false},
		"a caller without a user, empty header":  {known(identity.Identity{}), http.Header{"Impersonate-User": {""}}, false},
		"a caller without a user, groups only":   {known(identity.Identity{Groups: alice.Groups}), http.Header{"Impersonate-Group": alice.Groups}, false},
		"no headers":                             {known(alice), http.Header{}, false},
		"no user":                                {known(alice), without(impersonating(alice), "Impersonate-User"), false},
		"no values for the user":                 {known(alice), with(impersonating(alice), "Impersonate-User"), false},
		"an empty user":                          {known(alice), with(impersonating(alice), "Impersonate-User", ""), false},
		"another user":                           {known(alice), impersonating(identity.Identity{User: bob.User, Groups: alice.Groups}), false},
		"the user in other capitals":             {known(alice), with(impersonating(alice), "Impersonate-User", "Alice@example.com"), false},
		"two users":                              {known(alice), with(impersonating(alice), "Impersonate-User", alice.User, bob.User), false},
		"the user under a name in lower case":    {known(alice), with(without(impersonating(alice), "Impersonate-User"), "impersonate-user", alice.User), false},
		"a second user in lower case":            {known(alice), with(impersonating(alice), "impersonate-user", bob.User), false},
		"a group less":                           {known(alice), with(impersonating(alice), "Impersonate-Group", "readers"), false},
		"a group more":                           {known(alice), with(impersonating(alice), "Impersonate-Group", "readers", "writers", "system:masters"), false},
		"other groups":                           {known(alice), with(impersonating(alice), "Impersonate-Group", "readers", "admins"), false},
		"groups in another order":                {known(alice), with(impersonating(alice), "Impersonate-Group", "writers", "readers"), false},
		"no groups":                              {known(alice), without(impersonating(alice), "Impersonate-Group"), false},
		"groups for a user who has none":         {known(bob), with(impersonating(bob), "Impersonate-Group", "readers"), false},
		"an empty group for a user who has none": {known(bob), with(impersonating(bob), "Impersonate-Group", ""), false},
		"a second group header in lower case":    {known(bob), with(impersonating(bob), "impersonate-group", "system:masters"), false},
		"a UID":                                  {known(alice), with(impersonating(alice), "Impersonate-Uid", "0"), false},
		"an extra":                               {known(alice), with(impersonating(alice), "Impersonate-Extra-Scopes", "all"), false},
		"an extra without values":                {known(alice), with(impersonating(alice), "Impersonate-Extra-Scopes"), false},
		"an extra in lower case":                 {known(alice), with(impersonating(alice), "impersonate-extra-scopes", "all"), false},
		"credentials of the client":              {known(alice), with(impersonating(alice), "Authorization", "Bearer client"), false},
		"empty credentials of the client":        {known(alice), with(impersonating(alice), "Authorization", ""), false},
		"credentials of the client, lower case":  {known(alice), with(impersonating(alice), "authorization", "Bearer client"), false},
	} {
		t.Run(name, func(t *testing.T) {
			sent := 0
			guard := &impersonationGuard{next: roundTripper(func(*http.Request) (*http.Response, error) {
				sent++
				return httptest.NewRecorder().Result(), nil
			})}
			body := &closeNoted{Reader: strings.NewReader("{}")}
			r := httptest.NewRequestWithContext(tc.ctx, http.MethodPost, "https://api/", body)
			r.Body, r.Header = body, tc.header
			res, err := guard.RoundTrip(r)
			if err == nil {
				_ = res.Body.Close()
			}
			switch {
			case tc.passes && (err != nil || sent != 1):
				t.Errorf("sent %d times, error %v", sent, err)
			case !tc.passes && sent != 0:
				t.Error("the request was sent")
			case !tc.passes && !errors.Is(err, errNotImpersonated):
				t.Errorf("error %v, want errNotImpersonated", err)
			case !tc.passes && !body.closed:
				t.Error("the body was not closed")
			}
		})
	}
}

// In auth mode both ways to the API server are guarded, in noauth mode none is:
// there is nothing to guard.
func TestGuardIsOnBothWays(t *testing.T) {
	api := newAPIServer(t, nil)
	for mode, guarded := range map[Mode]bool{ModeAuth: true, ModeNoAuth: false} {
		up, err := newUpstream(mode, api.config())
		if err != nil {
			t.Fatal(err)
		}
		for _, header := range []http.Header{{}, {"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}}} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, api.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header = header
			res, err := up.RoundTrip(r)
			if err == nil {
				_ = res.Body.Close()
			}
			if errors.Is(err, errNotImpersonated) != guarded {
				t.Errorf("mode %s, %v: error %v", mode, header, err)
			}
		}
	}
	for _, r := range api.all() {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("credentials %q were sent", r.Header.Get("Authorization"))
		}
	}
}

// A request that the guard stops is the proxy's fault, and says so.
func TestNotImpersonatedIsADefect(t *testing.T) {
	api := newAPIServer(t, nil)
	r := start(t, api, options{})
	next := r.proxy.reverse.Rewrite
	r.proxy.reverse.Rewrite = func(pr *httputil.ProxyRequest) {
		next(pr)
		pr.Out.Header.Del("Impersonate-User")
	}
	res, body := r.get(t, alice.Addr, "/api", nil)
	r.checkRefusal(t, res, body, http.StatusInternalServerError, "InternalError", reasonNotImpersonated, "without saying who is calling")
	api.mustNotReach(t)
}

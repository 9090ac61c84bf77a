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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"

	"github.com/tailhelm/tailhelm/internal/identity"
	"github.com/tailhelm/tailhelm/internal/recording"
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
	root := identity.Identity{User: alice.User, Groups: []string{"readers", "system:masters"}}
	asking := func(id identity.Identity, groups ...string) context.Context {
		return withCall(context.Background(), &call{caller: id, groups: groups})
	}
	known := func(id identity.Identity) context.Context { return asking(id, id.Groups...) }
	impersonating := func(id identity.Identity) http.Header {
		h := http.Header{"Accept": {"*/*"}}
		impersonate(h, id.User, id.Groups)
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
		"one of the groups":   {asking(alice, alice.Groups[0]), impersonating(identity.Identity{User: alice.User, Groups: alice.Groups[:1]}), true},
		"none of the groups":  {asking(alice), impersonating(identity.Identity{User: alice.User}), true},

		"more groups than asked for": {asking(alice, alice.Groups[0]), impersonating(alice), false},
		"a group of somebody else":   {asking(bob, "admins"), impersonating(identity.Identity{User: bob.User, Groups: []string{"admins"}}), false},

		"a caller in a refused group": {known(root), impersonating(root), false},

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
			checkGuard(t, func(next http.RoundTripper) http.RoundTripper {
				return &impersonationGuard{next: next, refused: []string{"system:masters"}}
			}, request(tc.ctx, tc.header), errNotImpersonated, tc.passes)
		})
	}
}

// request returns a request as it comes to the guards.
func request(ctx context.Context, header http.Header) *http.Request {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "https://api/", nil)
	r.Body, r.Header = &closeNoted{Reader: strings.NewReader("{}")}, header
	return r
}

// checkGuard checks that r passes a guard, or that it is refused with an error that wraps
// refused.
func checkGuard(t *testing.T, guard func(next http.RoundTripper) http.RoundTripper, r *http.Request, refused error, passes bool) {
	t.Helper()
	sent := 0
	rt := guard(roundTripper(func(*http.Request) (*http.Response, error) {
		sent++
		return httptest.NewRecorder().Result(), nil
	}))
	res, err := rt.RoundTrip(r)
	if err == nil {
		_ = res.Body.Close()
	}
	switch {
	case passes && (err != nil || sent != 1):
		t.Errorf("sent %d times, error %v", sent, err)
	case !passes && sent != 0:
		t.Error("the request was sent")
	case !passes && !errors.Is(err, refused):
		t.Errorf("error %v, want one of %v", err, refused)
	case !passes && !r.Body.(*closeNoted).closed:
		t.Error("the body was not closed")
	}
}

// The guard stands alone: whatever goes wrong before it, a session that must be recorded
// reaches the API server only when a recorder has taken it.
func TestRecordingGuard(t *testing.T) {
	enforced := identity.Identity{User: "u", MustRecord: true}
	info := func(resource, subresource string) *apirequest.RequestInfo {
		return &apirequest.RequestInfo{IsResourceRequest: true, Resource: resource, Subresource: subresource}
	}
	taken := &sessionRecording{to: new(recording.Recording)}
	for name, tc := range map[string]struct {
		call   *call
		passes bool
	}{
		"no call":             {nil, false},
		"nobody knows what":   {&call{caller: identity.Identity{User: "u"}}, false},
		"recorded exec":       {&call{caller: enforced, info: info("pods", "exec"), recording: taken}, true},
		"exec":                {&call{caller: enforced, info: info("pods", "exec")}, false},
		"attach":              {&call{caller: enforced, info: info("pods", "attach")}, false},
		"exec, no recorder":   {&call{caller: enforced, info: info("pods", "exec"), recording: &sessionRecording{}}, false},
		"exec, not enforced":  {&call{caller: identity.Identity{User: "u"}, info: info("pods", "exec")}, true},
		"exec of another API": {&call{caller: enforced, info: info("gadgets", "exec")}, true},
		"port-forward":        {&call{caller: enforced, info: info("pods", "portforward")}, true},
		"no session":          {&call{caller: enforced, info: info("pods", "")}, true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			if tc.call != nil {
				ctx = withCall(ctx, tc.call)
			}
			checkGuard(t, func(next http.RoundTripper) http.RoundTripper { return &recordingGuard{next: next} }, request(ctx, http.Header{}), errNotRecorded, tc.passes)
		})
	}
}

// Both ways to the API server are guarded: in both modes so that sessions are recorded
// that must be, and in auth mode so that callers are impersonated.
func TestGuardsAreOnBothWays(t *testing.T) {
	api := newAPIServer(t, nil)
	get := &apirequest.RequestInfo{Verb: "get"}
	exec := &apirequest.RequestInfo{IsResourceRequest: true, Resource: "pods", Subresource: "exec"}
	for mode, unknown := range map[Mode]error{ModeAuth: errNotImpersonated, ModeNoAuth: nil} {
		up, err := newUpstream(Config{Mode: mode, Upstream: api.config()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(up.close)
		for _, header := range []http.Header{{}, {"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}}} {
			for c, want := range map[*call]error{
				{info: get}: unknown,
				{info: exec, caller: identity.Identity{MustRecord: true}}: errNotRecorded,
			} {
				r, err := http.NewRequestWithContext(withCall(t.Context(), c), http.MethodGet, api.URL, nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header = header
				res, err := up.RoundTrip(r)
				if err == nil {
					_ = res.Body.Close()
				}
				if !errors.Is(err, want) {
					t.Errorf("mode %s, %v, %v: error %v, want %v", mode, header, c.info, err, want)
				}
			}
		}
	}
	if n := len(api.all()); n != 2 {
		t.Errorf("%d requests reached the API server, want the 2 in noauth mode that are no sessions", n)
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

// So is a session that the guard stops.
func TestNotRecordedIsADefect(t *testing.T) {
	for _, mode := range []Mode{ModeAuth, ModeNoAuth} {
		t.Run(string(mode), func(t *testing.T) {
			api := newAPIServer(t, nil)
			r := start(t, api, options{mode: mode})
			r.grant(true, newRecorder(t, false).addr)
			next := r.proxy.reverse.Rewrite
			r.proxy.reverse.Rewrite = func(pr *httputil.ProxyRequest) {
				callFrom(pr.In.Context()).recording = nil
				next(pr)
			}
			res, body := r.do(t, alice.Addr, false, r.request(t, http.MethodGet, podPath+"/exec?command=sh", nil, http.Header{
				"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Protocol": {"v4.channel.k8s.io"},
			}))
			r.checkRefusal(t, res, body, http.StatusInternalServerError, metav1.StatusReasonInternalError, reasonNotRecorded, "without a recording that the tailnet policy demands")
			api.mustNotReach(t)
		})
	}
}

// Nobody gets a refused group, whoever forgets to look.
func TestRefusedGroupsAreGuarded(t *testing.T) {
	api := newAPIServer(t, nil)
	up, err := newUpstream(Config{Mode: ModeAuth, Upstream: api.config(), RefusedGroups: []string{alice.Groups[1]}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(up.close)
	ctx := withCall(t.Context(), &call{caller: alice, groups: alice.Groups, info: &apirequest.RequestInfo{}})
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, api.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	impersonate(r.Header, alice.User, alice.Groups)
	res, err := up.RoundTrip(r)
	if err == nil {
		_ = res.Body.Close()
	}
	if !errors.Is(err, errNotImpersonated) {
		t.Errorf("error %v, want errNotImpersonated", err)
	}
	api.mustNotReach(t)
}

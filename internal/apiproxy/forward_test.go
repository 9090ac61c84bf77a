// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tailhelm/tailhelm/internal/identity"
)

func TestImpersonation(t *testing.T) {
	for name, tc := range map[string]struct {
		caller identity.Identity
		groups []string
		kind   string
	}{
		"user with groups":    {alice, alice.Groups, "user"},
		"user without groups": {bob, nil, "user"},
		"tagged device":       {ci, ci.Groups, "tagged"},
	} {
		for _, http2 := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				api := newAPIServer(t, nil)
				r := start(t, api, options{})
				res, _ := r.do(t, tc.caller.Addr, http2, r.request(t, http.MethodGet, "/api/v1/pods", nil, nil))
				if res.StatusCode != http.StatusOK {
					t.Fatalf("status %s", res.Status)
				}
				h := api.only(t).Header
				if diff := cmp.Diff([]string{tc.caller.User}, h["Impersonate-User"]); diff != "" {
					t.Errorf("Impersonate-User (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(tc.groups, h["Impersonate-Group"], cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("Impersonate-Group (-want +got):\n%s", diff)
				}
				if got := metric(t, r.metrics, "tailhelm_apiproxy_impersonations_total", "caller", tc.kind); got != 1 {
					t.Errorf("%v impersonations of a %s were counted, want 1", got, tc.kind)
				}
				if got := api.only(t).Proto; got != "HTTP/2.0" {
					t.Errorf("the API server is spoken to in %s, want HTTP/2.0", got)
				}
			})
		}
	}
}

// In noauth mode none of the proxy's own credentials may be sent, whatever the
// client sends and however they were configured.
func TestNoAuthSendsNoCredentialsOfOurs(t *testing.T) {
	api := newAPIServer(t, nil)
	config := api.config()
	config.Username, config.Password = "", ""
	wrapped := false
	config.Wrap(func(rt http.RoundTripper) http.RoundTripper {
		wrapped = true
		return rt
	})
	r := start(t, api, options{mode: ModeNoAuth, config: config})
	for _, header := range []http.Header{nil, {"Authorization": {"Bearer client"}}, {"Authorization": {"Bearer client"}, "Impersonate-User": {"carol"}, "Impersonate-Group": {"a", "b"}, "Impersonate-Extra-Scopes": {"x"}}} {
		for _, http2 := range []bool{true, false} {
			if res, _ := r.do(t, alice.Addr, http2, r.request(t, http.MethodGet, "/api", nil, header)); res.StatusCode != http.StatusOK {
				t.Fatalf("status %s", res.Status)
			}
			got := api.all()[len(api.all())-1].Header
			for _, name := range []string{"Authorization", "Impersonate-User", "Impersonate-Group", "Impersonate-Extra-Scopes"} {
				if diff := cmp.Diff(header[name], got[name]); diff != "" {
					t.Errorf("%s (-sent +got):\n%s", name, diff)
				}
			}
		}
	}
	if wrapped {
		t.Error("the wrapper with the proxy's credentials is in the transport")
	}
	if got := gather(t, r.metrics, "tailhelm_apiproxy_impersonations_total"); got != nil {
		t.Errorf("impersonations were counted: %v", got)
	}
}

// The API server must see the path as the client wrote it, after its own base
// path, and its own name as the host.
func TestPathAndHost(t *testing.T) {
	for name, tc := range map[string]struct {
		base, target, want string
	}{
		"plain":                      {"", "/api/v1/pods", "/api/v1/pods"},
		"root":                       {"", "/", "/"},
		"query":                      {"", "/api/v1/pods?limit=500&continue=a%2Bb", "/api/v1/pods?limit=500&continue=a%2Bb"},
		"escaped slash":              {"", "/api/v1/namespaces/a%2Fb", "/api/v1/namespaces/a%2Fb"},
		"escaped letters":            {"", "/api/v1/%70ods", "/api/v1/%70ods"},
		"two slashes":                {"", "//api//v1/pods//", "//api//v1/pods//"},
		"slash at the end":           {"", "/api/v1/namespaces/default/pods/p/exec/", "/api/v1/namespaces/default/pods/p/exec/"},
		"base path":                  {"/k8s/clusters/c-1", "/api/v1/pods?watch=1", "/k8s/clusters/c-1/api/v1/pods?watch=1"},
		"base path with a slash":     {"/k8s/", "/api", "/k8s/api"},
		"base path, escaped":         {"/k8s", "/api/v1/namespaces/a%2Fb", "/k8s/api/v1/namespaces/a%2Fb"},
		"address of another server":  {"", "http://evil.example/api", "/api"},
		"address with a user":        {"", "https://admin:pw@evil.example/api", "/api"},
		"parameters that are no use": {"", "/api?a=%zz&b=1;c=2&d=3", "/api?d=3"},
	} {
		t.Run(name, func(t *testing.T) {
			api := newAPIServer(t, nil)
			config := api.config()
			config.Host += tc.base
			r := start(t, api, options{config: config})
			if code := r.raw(t, "GET "+tc.target+" HTTP/1.1"); code != http.StatusOK {
				t.Fatalf("status %d", code)
			}
			got := api.only(t)
			if got.URI != tc.want {
				t.Errorf("the API server is asked for %s, want %s", got.URI, tc.want)
			}
			if want := strings.TrimPrefix(api.URL, "https://"); got.Host != want {
				t.Errorf("host %s, want %s", got.Host, want)
			}
			if got.Header.Get("Authorization") != "Bearer "+ourToken {
				t.Errorf("credentials %q", got.Header["Authorization"])
			}
		})
	}
}

func TestBodies(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 3*replayLimit/16)
	for name, body := range map[string]string{"none": "", "small": `{"kind":"Pod"}`, "larger than what is kept": big} {
		for _, chunked := range []bool{false, true} {
			for _, http2 := range []bool{false, true} {
				t.Run(name, func(t *testing.T) {
					api := newAPIServer(t, nil)
					r := start(t, api, options{})
					var reader io.Reader = strings.NewReader(body)
					if chunked {
						reader = io.MultiReader(reader) // net/http does not know its length
					}
					if res, _ := r.do(t, alice.Addr, http2, r.request(t, http.MethodPatch, "/api/v1/pods/p", reader, nil)); res.StatusCode != http.StatusOK {
						t.Fatalf("status %s", res.Status)
					}
					if got := string(api.only(t).Body); got != body {
						t.Errorf("%d bytes arrived, %d were sent", len(got), len(body))
					}
				})
			}
		}
	}
}

func TestNewRefuses(t *testing.T) {
	api := newAPIServer(t, nil)
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no mode":      {func(c *Config) { c.Mode = "" }, `mode "" is none of "auth" and "noauth"`},
		"unknown mode": {func(c *Config) { c.Mode = "Auth" }, `mode "Auth" is none of`},
		"no address":   {func(c *Config) { c.Upstream.Host = "https://:bad:port" }, "https://:bad:port"},
		"no CA":        {func(c *Config) { c.Upstream.CAData = []byte("x") }, "TLS to the Kubernetes API server"},
		"impersonates a user": {
			func(c *Config) { c.Upstream.Impersonate.UserName = "carol" }, `impersonates "carol" itself: remove "as"`,
		},
		"impersonates groups": {
			func(c *Config) { c.Upstream.Impersonate.Groups = []string{"g"} }, "impersonates",
		},
		"impersonates a UID": {
			func(c *Config) { c.Upstream.Impersonate.UID = "1" }, "impersonates",
		},
		"impersonates an extra": {
			func(c *Config) { c.Upstream.Impersonate.Extra = map[string][]string{"a": {"b"}} }, "impersonates",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := Config{Mode: ModeAuth, Upstream: api.config()}
			tc.change(&c)
			if _, err := New(c); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

// The connection that CheckReachable opens is the one of the first request. Without credentials
// of its own, the proxy asks over another one.
func TestCheckReachableWarms(t *testing.T) {
	for mode, want := range map[Mode]int{ModeAuth: 1, ModeNoAuth: 3} {
		t.Run(string(mode), func(t *testing.T) {
			var mu sync.Mutex
			var paths []string
			connections := map[string]bool{}
			api := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				paths, connections[r.RemoteAddr] = append(paths, r.URL.Path), true
			})
			r := start(t, api, options{mode: mode})
			for range 2 {
				if err := r.proxy.CheckReachable(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			r.get(t, alice.Addr, "/api/v1/pods", nil)
			mu.Lock()
			defer mu.Unlock()
			if got := strings.Join(paths, " "); got != "/version /version /api/v1/pods" || len(connections) != want {
				t.Errorf("asked for %s over %d connections, want %d", got, len(connections), want)
			}
		})
	}
}

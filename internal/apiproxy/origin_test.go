// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"testing"
)

// deviceName is the name of the device that the proxy under test is served on.
const deviceName = "kube.tail1234.ts.net"

func TestCheckOrigin(t *testing.T) {
	for _, tc := range []struct {
		name    string
		method  string
		header  http.Header
		refused bool
	}{
		{name: "program", method: http.MethodPost},
		{name: "page of another site posts", method: http.MethodPost, header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, refused: true},
		{name: "page of the same site posts", method: http.MethodPost, header: http.Header{"Sec-Fetch-Site": {"same-site"}}, refused: true},
		{name: "own page posts", method: http.MethodPost, header: http.Header{"Sec-Fetch-Site": {"same-origin"}}},
		{name: "own page of an old browser posts", method: http.MethodPost, header: http.Header{"Origin": {"https://" + deviceName}}},
		{name: "other page of an old browser posts", method: http.MethodPost, header: http.Header{"Origin": {"https://evil.example"}}, refused: true},
		{name: "other page deletes", method: http.MethodDelete, header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, refused: true},
		{name: "link from another page", method: http.MethodGet, header: http.Header{"Sec-Fetch-Site": {"cross-site"}}},
		{
			name: "other page opens a WebSocket", method: http.MethodGet, refused: true,
			header: http.Header{"Connection": {"keep-alive, Upgrade"}, "Upgrade": {"websocket"}, "Origin": {"https://evil.example"}},
		},
		{
			name: "program opens a WebSocket", method: http.MethodGet,
			header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), tc.method, "https://"+deviceName+"/api/v1/namespaces/default/pods", nil)
			r.Header = tc.header
			if got := checkOrigin(r) != nil; got != tc.refused {
				t.Errorf("refused = %v, want %v", got, tc.refused)
			}
			if r.Method != tc.method {
				t.Errorf("the check changed the method to %s", r.Method)
			}
		})
	}
}

func TestCheckHost(t *testing.T) {
	for _, tc := range []struct {
		host    string
		tls     bool
		refused bool
	}{
		{host: deviceName},
		{host: deviceName + ":80"},
		{host: "KUBE.tail1234.ts.net."},
		{host: "kube"},
		{host: "100.64.0.1"},
		{host: "[fd7a:115c:a1e0::1]:80"},
		{host: "evil.example", refused: true},
		{host: "kube.evil.example", refused: true},
		{host: "", refused: true},
		{host: "evil.example", tls: true},
	} {
		t.Run(tc.host, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api", nil)
			r.Host = tc.host
			if tc.tls {
				r.TLS = &tls.ConnectionState{}
			}
			if got := checkHost(r, deviceName) != nil; got != tc.refused {
				t.Errorf("refused = %v, want %v", got, tc.refused)
			}
		})
	}
}

// The proxy makes these checks in auth mode, before the API server is asked
// anything. In noauth mode no caller is known by its device.
func TestPagesOfOtherSites(t *testing.T) {
	const post = "POST /api/v1/namespaces/default/pods HTTP/1.1"
	for name, tc := range map[string]struct {
		plain         bool
		line          string
		lines         []string
		code, noauths int // in auth mode, and in noauth mode
	}{
		"another site posts":            {false, post, []string{"Sec-Fetch-Site: cross-site", "Content-Length: 0"}, 403, 200},
		"another site posts, plain":     {true, post, []string{"Origin: http://evil.example", "Content-Length: 0"}, 403, 200},
		"another site opens a stream":   {false, "GET /api HTTP/1.1", []string{"Connection: Upgrade", "Upgrade: websocket", "Origin: https://evil.example"}, 403, 200},
		"a name that is not the device": {true, "GET http://evil.example/api HTTP/1.1", nil, 403, 200},
		"a program":                     {false, post, []string{"Content-Length: 0"}, 200, 200},
		"a program, plain":              {true, post, []string{"Content-Length: 0"}, 200, 200},
	} {
		for mode, want := range map[Mode]int{ModeAuth: tc.code, ModeNoAuth: tc.noauths} {
			t.Run(name+", "+string(mode), func(t *testing.T) {
				api := newAPIServer(t, nil)
				r := start(t, api, options{mode: mode, plain: tc.plain})
				if code := r.raw(t, tc.line, tc.lines...); code != want {
					t.Errorf("status %d, want %d", code, want)
				}
				if want != http.StatusOK {
					api.mustNotReach(t)
				}
			})
		}
	}
}

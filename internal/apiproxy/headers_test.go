// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bufio"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const bearer = bearerSubprotocol + "dG9rZW4tb2YtdGhlLWNsaWVudA"

// headerCases say what becomes of a client's header on its way to the API server.
var headerCases = map[string]struct {
	send         []string // lines, as on the wire
	auth, noauth http.Header
}{
	"credentials": {
		send: []string{"Authorization: Bearer client"},
		auth: http.Header{"Authorization": {"Bearer " + ourToken}}, noauth: http.Header{"Authorization": {"Bearer client"}},
	},
	"credentials in odd capitals": {
		send: []string{"aUTHORIZATION: Bearer client"},
		auth: http.Header{"Authorization": {"Bearer " + ourToken}}, noauth: http.Header{"Authorization": {"Bearer client"}},
	},
	"credentials twice": {
		send:   []string{"Authorization: Bearer one", "authorization: Basic dHdv"},
		auth:   http.Header{"Authorization": {"Bearer " + ourToken}},
		noauth: http.Header{"Authorization": {"Bearer one", "Basic dHdv"}},
	},
	"empty credentials": {
		send: []string{"Authorization:"},
		auth: http.Header{"Authorization": {"Bearer " + ourToken}}, noauth: http.Header{"Authorization": {""}},
	},
	"credentials for a proxy": {
		send: []string{"Proxy-Authorization: Basic Zm9v"},
	},
	"claims of an authenticating proxy": {
		send: []string{"X-Remote-User: admin", "x-remote-group: system:masters", "X-REMOTE-EXTRA-SCOPES: all", "X-Remote-Uid: 0"},
	},
	"claims of a Tailscale proxy": {
		send: []string{"Tailscale-User-Login: admin@example.com", "tailscale-user-name: Admin", "Tailscale-App-Capabilities: {}"},
	},
	"claims about the client's address": {
		send: []string{
			"X-Real-Ip: 10.0.0.1", "x-real-ip: 10.0.0.2", "Forwarded: for=10.0.0.1", "X-Forwarded-For: 10.0.0.1, 10.0.0.2", "x-forwarded-for: 10.0.0.3",
			"X-Forwarded-Host: evil", "X-Forwarded-Proto: http", "X-Forwarded-User: admin", "X-Forwarded-Access-Token: t", "X-Forwarded-Client-Cert: c",
		},
	},
	"a bearer subprotocol alone": {
		send:   []string{"Sec-WebSocket-Protocol: " + bearer},
		noauth: http.Header{headerSubprotocol: {bearer}},
	},
	"a bearer subprotocol first": {
		send: []string{"Sec-WebSocket-Protocol: " + bearer + ", v5.channel.k8s.io,v4.channel.k8s.io"},
		auth: http.Header{headerSubprotocol: {"v5.channel.k8s.io, v4.channel.k8s.io"}}, noauth: http.Header{headerSubprotocol: {bearer + ", v5.channel.k8s.io,v4.channel.k8s.io"}},
	},
	"a bearer subprotocol in another line, in capitals": {
		send:   []string{"sec-websocket-protocol: v5.channel.k8s.io", "Sec-WebSocket-Protocol:  " + strings.ToUpper(bearer) + " ,base64.channel.k8s.io"},
		auth:   http.Header{headerSubprotocol: {"v5.channel.k8s.io, base64.channel.k8s.io"}},
		noauth: http.Header{headerSubprotocol: {"v5.channel.k8s.io", strings.ToUpper(bearer) + " ,base64.channel.k8s.io"}},
	},
	"subprotocols without a bearer": {
		send: []string{"Sec-WebSocket-Protocol: v5.channel.k8s.io"},
		auth: http.Header{headerSubprotocol: {"v5.channel.k8s.io"}}, noauth: http.Header{headerSubprotocol: {"v5.channel.k8s.io"}},
	},
	"hop by hop headers": {
		send: []string{"Keep-Alive: timeout=5", "Te: gzip", "Proxy-Connection: keep-alive", "X-Private: 1", "Connection: X-Private"},
	},
	"headers that the proxy sets, named as hop by hop": {
		send:   []string{"Connection: Impersonate-User, Impersonate-Group, Authorization, X-Forwarded-For, Audit-Id", "Authorization: Bearer client"},
		auth:   http.Header{"Authorization": {"Bearer " + ourToken}},
		noauth: http.Header{},
	},
	"headers for the API server": {
		send: []string{"Accept: application/json;as=Table", "Accept-Encoding: br", "User-Agent: kubectl/v1", "Audit-Id: a1", "Cookie: c=d", "If-None-Match: e"},
		auth: http.Header{
			"Accept": {"application/json;as=Table"}, "Accept-Encoding": {"br"}, "User-Agent": {"kubectl/v1"}, "Cookie": {"c=d"}, "If-None-Match": {"e"},
		},
		noauth: http.Header{
			"Accept": {"application/json;as=Table"}, "Accept-Encoding": {"br"}, "User-Agent": {"kubectl/v1"}, "Audit-Id": {"a1"}, "Cookie": {"c=d"}, "If-None-Match": {"e"},
		},
	},
}

func TestHeaders(t *testing.T) {
	for _, mode := range []Mode{ModeAuth, ModeNoAuth} {
		for name, tc := range headerCases {
			t.Run(string(mode)+"/"+name, func(t *testing.T) {
				api := newAPIServer(t, nil)
				r := start(t, api, options{mode: mode})
				r.raw(t, "GET /api/v1/pods HTTP/1.1", tc.send...)
				want := http.Header{headerForwardedFor: {alice.Addr.String()}}
				if mode == ModeAuth {
					want["Authorization"] = []string{"Bearer " + ourToken}
					want["Impersonate-User"], want["Impersonate-Group"] = []string{alice.User}, alice.Groups
					addAll(want, tc.auth)
				} else {
					addAll(want, tc.noauth)
				}
				got := api.only(t).Header
				line := r.logs.lines(t, "request", 1)[0]
				if chosen := want.Get(headerAuditID); line["auditID"] != got.Get(headerAuditID) || chosen == "" && !isUUID(got.Get(headerAuditID)) {
					t.Errorf("audit ID %q at the API server, %q in the log", got[headerAuditID], line["auditID"])
				} else if chosen == "" {
					want[headerAuditID] = got[headerAuditID]
				}
				if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("headers at the API server (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// Streams go another way to the API server than requests. The rules are the same.
func TestHeadersOfStreams(t *testing.T) {
	for _, mode := range []Mode{ModeAuth, ModeNoAuth} {
		t.Run(string(mode), func(t *testing.T) {
			// What answers an upgrade may be a pod's.
			api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) { echoWith(w, r, "Audit-Id: forged\r\n") })
			r := start(t, api, options{mode: mode})
			s := r.stream(t, alice.Addr, http.MethodGet, "websocket",
				"Authorization: Bearer client", "X-Remote-User: admin", "Tailscale-User-Login: admin", "X-Real-Ip: 10.0.0.1",
				"X-Forwarded-For: 10.0.0.1", "Connection: Impersonate-User, Audit-Id", "Sec-WebSocket-Protocol: "+bearer+", v5.channel.k8s.io")
			s.ping(t)
			want := http.Header{
				"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, headerForwardedFor: {alice.Addr.String()},
				"Authorization": {"Bearer client"}, headerSubprotocol: {bearer + ", v5.channel.k8s.io"},
			}
			if mode == ModeAuth {
				addAll(want, http.Header{
					"Authorization": {"Bearer " + ourToken}, headerSubprotocol: {"v5.channel.k8s.io"},
					"Impersonate-User": {alice.User}, "Impersonate-Group": alice.Groups,
				})
			}
			got := api.only(t).Header
			_ = s.Close()
			if line := r.logs.lines(t, "request", 1)[0]; line["auditID"] != got.Get(headerAuditID) || !isUUID(got.Get(headerAuditID)) {
				t.Errorf("audit ID %q at the API server, %q in the log", got[headerAuditID], line["auditID"])
			}
			delete(got, headerAuditID)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("headers at the API server (-want +got):\n%s", diff)
			}
			if got := api.only(t).Proto; got != "HTTP/1.1" {
				t.Errorf("protocol %s, want HTTP/1.1", got)
			}
		})
	}
}

// What a client writes on the wire after its body counts as little as a header.
func TestTrailers(t *testing.T) {
	for _, mode := range []Mode{ModeAuth, ModeNoAuth} {
		t.Run(string(mode), func(t *testing.T) {
			api := newAPIServer(t, nil)
			r := start(t, api, options{mode: mode})
			conn, err := r.dial(t, alice.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_, _ = fmt.Fprintf(conn, "POST /api/v1/pods HTTP/1.1\r\nHost: "+deviceName+"\r\nTransfer-Encoding: chunked\r\nTe: trailers\r\nTrailer: X-Note, Impersonate-Group\r\n\r\n"+
				"2\r\n{}\r\n0\r\nX-Note: n\r\nImpersonate-Group: system:masters\r\nImpersonate-User: admin\r\nAuthorization: Bearer client\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			got := api.only(t)
			if len(got.Trailer) > 0 || got.Header["Trailer"] != nil {
				t.Errorf("trailers %v (announced: %v) reached the API server", got.Trailer, got.Header["Trailer"])
			}
			if string(got.Body) != "{}" || res.StatusCode != http.StatusOK {
				t.Errorf("body %q answered by %s", got.Body, res.Status)
			}
		})
	}
}

// raw sends a request as alice over HTTP/1.1, with header lines as they are, and
// returns the status code.
func (r *rig) raw(t *testing.T, requestLine string, lines ...string) int {
	t.Helper()
	conn, err := r.dial(t, alice.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = fmt.Fprintf(conn, "%s\r\nHost: %s\r\n%s\r\n", requestLine, deviceName, joinLines(lines))
	method, _, _ := strings.Cut(requestLine, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode
}

func joinLines(lines []string) string {
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(line + "\r\n")
	}
	return b.String()
}

// addAll replaces the headers of dst by those of src.
func addAll(dst, src http.Header) {
	for name, values := range src {
		dst[name] = values
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func TestHugeHeaders(t *testing.T) {
	padding := func(size int) []string {
		var lines []string
		for i := range size / 1000 {
			lines = append(lines, fmt.Sprintf("X-Padding-%d: %s", i, strings.Repeat("x", 1000)))
		}
		return lines
	}
	api := newAPIServer(t, nil)
	r := start(t, api, options{})
	if code := r.raw(t, "GET /api HTTP/1.1", padding(2*maxHeaderBytes)...); code != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d, want 431", code)
	}
	// An HTTP/2 client is told of the limit and keeps to it by itself.
	request := r.request(t, http.MethodGet, "/api", nil, http.Header{"X-Padding": {strings.Repeat("x", 2*maxHeaderBytes)}})
	if res, err := r.client(t, alice.Addr, true).Do(request); err == nil {
		_ = res.Body.Close()
		t.Errorf("over HTTP/2: status %s", res.Status)
	}
	api.mustNotReach(t)
	if code := r.raw(t, "GET /api HTTP/1.1", padding(16<<10)...); code != http.StatusOK {
		t.Errorf("a header as large as a client may need: status %d", code)
	}
}

// works reports whether a connection is served.
func works(conn net.Conn) bool {
	if _, err := io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: "+deviceName+"\r\n\r\n"); err != nil {
		return false
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return true
}

// A peer that opens too many connections is turned away before TLS. Others are not.
func TestConnectionsPerPeer(t *testing.T) {
	const limit = 3
	for _, plain := range []bool{true, false} {
		t.Run(fmt.Sprintf("plain: %v", plain), func(t *testing.T) {
			r := start(t, newAPIServer(t, nil), options{plain: plain, connections: limit})
			open := make([]net.Conn, limit)
			connect := func(addr netip.Addr) (net.Conn, bool) {
				conn, err := r.dial(t, addr)
				if err != nil {
					return nil, false
				}
				t.Cleanup(func() { _ = conn.Close() })
				return conn, works(conn)
			}
			for i := range open {
				var ok bool
				if open[i], ok = connect(alice.Addr); !ok {
					t.Fatalf("connection %d is not served", i)
				}
			}
			if _, ok := connect(alice.Addr); ok {
				t.Error("a connection over the limit is served")
			}
			if got := metric(t, r.metrics, "tailhelm_apiproxy_connections_turned_away_total"); got != 1 {
				t.Errorf("%v connections were counted as turned away, want 1", got)
			}
			line := r.logs.lines(t, "connections are turned away: their peer has as many as it may have", 1)[0]
			if line["level"] != "WARN" || line["address"] != alice.Addr.String() || line["limit"] != float64(limit) || line["count"] != 1.0 {
				t.Errorf("logged as %v", line)
			}
			if got := metric(t, r.metrics, "tailhelm_apiproxy_connections"); got != limit {
				t.Errorf("%v connections are counted, want %d", got, limit)
			}
			for i, conn := range open {
				if !works(conn) {
					t.Errorf("connection %d is not served any more", i)
				}
			}
			if _, ok := connect(bob.Addr); !ok {
				t.Error("another peer's connection is not served")
			}
			_ = open[0].Close()
			eventually(t, "a place is free again", func() bool {
				_, ok := connect(alice.Addr)
				return ok
			})
		})
	}
}

// Places of streams are given back, too, though the server does not know of them
// any more.
func TestConnectionsOfStreams(t *testing.T) {
	r := start(t, newAPIServer(t, echo), options{connections: 1})
	for range 3 {
		s := r.stream(t, alice.Addr, http.MethodPost, "SPDY/3.1")
		s.ping(t)
		_ = s.Close()
		eventually(t, "the place is free again", func() bool {
			return metric(t, r.metrics, "tailhelm_apiproxy_connections") == 0
		})
	}
}

func TestRedirect(t *testing.T) {
	for name, tc := range map[string]struct {
		host         string // the proxy's
		line, header string
		want         string
	}{
		"to the proxy's name":              {deviceName, "GET /api/v1/pods?watch=1", "kube", "https://" + deviceName + "/api/v1/pods?watch=1"},
		"whatever name is asked for":       {deviceName, "GET /", "evil.example", "https://" + deviceName + "/"},
		"other methods":                    {deviceName, "DELETE /api/v1/pods/p", "kube", "https://" + deviceName + "/api/v1/pods/p"},
		"the path stays as it is":          {deviceName, "GET //a%2Fb/../c", "kube", "https://" + deviceName + "//a%2Fb/../c"},
		"the address of another server":    {deviceName, "GET http://evil.example/api", "evil.example", "https://" + deviceName + "/api"},
		"without a name: to the same name": {"", "GET /api", "kube.example", "https://kube.example/api"},
		"without a name: without the port": {"", "GET /api", "kube.example:80", "https://kube.example/api"},
		"without a name: an address":       {"", "GET /api", "100.64.0.1:80", "https://100.64.0.1/api"},
		"without a name: IPv6":             {"", "GET /api", "[fd7a::1]", "https://[fd7a::1]/api"},
		"without a name: IPv6 and port":    {"", "GET /api", "[fd7a::1]:80", "https://[fd7a::1]/api"},
	} {
		t.Run(name, func(t *testing.T) {
			api := newAPIServer(t, nil)
			r := start(t, api, options{host: tc.host})
			conn, err := dialerOf(alice.Addr).DialContext(t.Context(), "tcp", r.redirect)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_, _ = fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer client\r\n\r\n", tc.line, tc.header)
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if res.StatusCode != http.StatusPermanentRedirect || res.Header.Get("Location") != tc.want {
				t.Errorf("%s to %q, want 308 to %q", res.Status, res.Header.Get("Location"), tc.want)
			}
			api.mustNotReach(t)
		})
	}
}

// TLS offers HTTP/2 and HTTP/1.1, whatever the configuration says.
func TestProtocols(t *testing.T) {
	r := start(t, newAPIServer(t, nil), options{})
	for _, http2 := range []bool{true, false} {
		want := map[bool]int{true: 2, false: 1}[http2]
		if res, _ := r.do(t, alice.Addr, http2, r.request(t, http.MethodGet, "/api", nil, nil)); res.ProtoMajor != want {
			t.Errorf("protocol %s, want HTTP/%d", res.Proto, want)
		}
	}
}

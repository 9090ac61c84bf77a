// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/util/sets"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/rest"
)

// arrived is what the API server gets of a request, and what the proxy thought it
// was.
type arrived struct {
	request *http.Request
	call    *call
}

// capturing returns a Proxy for an API server at base whose transports deliver to
// the returned function's result instead of sending.
func capturing(tb testing.TB, base string) (*Proxy, func() *arrived) {
	tb.Helper()
	p, err := New(Config{
		Mode: ModeAuth, Upstream: &rest.Config{Host: "https://api" + base}, Peers: newFakePeers(alice), Name: func() string { return deviceName },
		Log: slog.New(slog.DiscardHandler), Metrics: NewMetrics(prometheus.NewRegistry()),
	})
	if err != nil {
		tb.Fatal(err)
	}
	var last *arrived
	send := &impersonationGuard{next: roundTripper(func(r *http.Request) (*http.Response, error) {
		var wire bytes.Buffer
		if err := r.Write(&wire); err != nil {
			return nil, err
		}
		received, err := http.ReadRequest(bufio.NewReader(&wire))
		if err != nil {
			tb.Errorf("the API server cannot read %q: %v", wire.String(), err)
			return nil, err
		}
		last = &arrived{received, callFrom(r.Context())}
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Header: http.Header{}, Request: r}, nil
	})}
	for way := range p.upstream.legs {
		p.upstream.legs[way] = send
	}
	return p, func() *arrived {
		a := last
		last = nil
		return a
	}
}

// apiServerInfo classifies as kube-apiserver is configured to.
var apiServerInfo = &apirequest.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}

// FuzzClassify sends requests, written as on the wire, through the proxy. What the
// proxy takes a request for must be what the API server takes it for, and the API
// server must get the path that the client meant.
func FuzzClassify(f *testing.F) {
	const base = "/k8s/c-1"
	plain, plainArrived := capturing(f, "")
	based, basedArrived := capturing(f, base)
	f.Fuzz(func(t *testing.T, wire []byte) {
		read := func() *http.Request {
			r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(wire)))
			if err != nil {
				return nil
			}
			r.RemoteAddr, r.TLS = alice.Addr.String()+":1", &tls.ConnectionState{}
			return r
		}
		if read() == nil {
			return
		}
		sent := read()
		plain.ServeHTTP(httptest.NewRecorder(), read())
		got := plainArrived()
		if got == nil {
			return // refused
		}
		if got.request.URL.Path != sent.URL.Path || got.request.URL.Host != "" || got.request.Host != "api" {
			t.Fatalf("the path %q arrives as %q at host %q", sent.URL.Path, got.request.URL.Path, got.request.Host)
		}
		if diff := cmp.Diff(sent.URL.Query(), got.request.URL.Query()); diff != "" {
			t.Fatalf("the query changes (-want +got):\n%s", diff)
		}
		info, err := apiServerInfo.NewRequestInfo(got.request)
		if err != nil {
			t.Fatalf("the API server does not understand what the proxy does: %v", err)
		}
		if diff := cmp.Diff(info, got.call.info); diff != "" {
			t.Fatalf("RequestInfo (-API server +proxy):\n%s", diff)
		}
		if _, kind, err := classify(got.request); err != nil || kind != got.call.kind {
			t.Fatalf("the proxy takes for a %s what is a %s, %v", got.call.kind, kind, err)
		}
		checkNoCredentials(t, got.request.Header, map[string]bool{"Impersonate-User": true, "Impersonate-Group": true, headerForwardedFor: true})

		based.ServeHTTP(httptest.NewRecorder(), read())
		if got := basedArrived(); got == nil || got.request.URL.Path != base+sent.URL.Path {
			t.Fatalf("behind a base path, the path %q arrives as %+v", sent.URL.Path, got)
		}
	})
}

// checkNoCredentials fails for headers with which somebody could authenticate, or
// claim to be, except for the allowed ones.
func checkNoCredentials(t *testing.T, h http.Header, allowed map[string]bool) {
	t.Helper()
	for name, values := range h {
		lower := strings.ToLower(name)
		for _, bad := range []string{"impersonate-", "x-remote-", "tailscale-", "x-forwarded-"} {
			if strings.HasPrefix(lower, bad) && !allowed[name] {
				t.Fatalf("%s: %q is left", name, values)
			}
		}
		if lower == "authorization" || lower == "forwarded" || lower == "x-real-ip" {
			t.Fatalf("%s: %q is left", name, values)
		}
		if lower != "sec-websocket-protocol" {
			continue
		}
		for protocol := range strings.SplitSeq(strings.Join(values, ","), ",") {
			if strings.HasPrefix(strings.ToLower(strings.TrimSpace(protocol)), bearerSubprotocol) {
				t.Fatalf("%s: %q is left", name, values)
			}
		}
	}
}

// FuzzDropCredentials removes from headers with names as they come, canonical or
// not. Nothing that authenticates is left, and nothing else is lost.
func FuzzDropCredentials(f *testing.F) {
	f.Fuzz(func(t *testing.T, lines []byte) {
		raw, canonical := http.Header{}, http.Header{}
		for line := range strings.SplitSeq(string(lines), "\n") {
			name, value, _ := strings.Cut(line, ":")
			raw[name] = append(raw[name], value)
			canonical.Add(name, value)
		}
		for _, h := range []http.Header{raw, canonical} {
			before := h.Clone()
			dropProxyClaims(h)
			dropCredentials(h)
			checkNoCredentials(t, h, nil)
			for name, values := range before {
				lower := strings.ToLower(name)
				switch {
				case lower == "authorization", lower == "x-real-ip", lower == "sec-websocket-protocol":
				case strings.HasPrefix(lower, "impersonate-"), strings.HasPrefix(lower, "x-remote-"), strings.HasPrefix(lower, "tailscale-"):
				case strings.HasPrefix(lower, "forwarded"), strings.HasPrefix(lower, "x-forwarded-"):
				default:
					if diff := cmp.Diff(values, h[name]); diff != "" {
						t.Fatalf("%q is not what it was (-want +got):\n%s", name, diff)
					}
				}
			}
		}
	})
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/tailhelm/tailhelm/internal/apiproxy"
	"github.com/tailhelm/tailhelm/internal/health"
)

// newTestService returns a service that is not running.
func newTestService(t *testing.T, change func(*proxyOptions)) *service {
	t.Helper()
	o := newProxyOptions(t, "https://127.0.0.1:1")
	change(o)
	s, err := o.service(vars{}.environment(), &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.prepare(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestChecks(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*proxyOptions)
		want   []string
	}{
		"auth":         {func(o *proxyOptions) { o.tls = tlsACME }, []string{"shutdown", "tailnet", "certificate", "listening", "apiserver", "impersonator", "name"}},
		"auth, no TLS": {func(*proxyOptions) {}, []string{"shutdown", "tailnet", "listening", "apiserver", "impersonator", "name"}},
		"noauth":       {func(o *proxyOptions) { o.tls, o.mode = tlsACME, "noauth" }, []string{"shutdown", "tailnet", "certificate", "listening", "apiserver", "name"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, c := range newTestService(t, tc.change).newChecks() {
				got = append(got, c.Name)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("checks (-want +got):\n%s", diff)
			}
		})
	}
}

// A service that shuts down is not ready from the first moment, and one that has
// not begun is not, either.
func TestReadiness(t *testing.T) {
	s := newTestService(t, func(*proxyOptions) {})
	check := func(name string) error {
		for _, c := range s.newChecks() {
			if c.Name == name {
				return c.Check(t.Context())
			}
		}
		t.Fatalf("no check %s", name)
		return nil
	}
	for _, name := range []string{"tailnet", "listening", "apiserver", "impersonator"} {
		if check(name) == nil {
			t.Errorf("%s is well before anything runs", name)
		}
	}
	if err := check("shutdown"); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	s.listening.Store(true)
	if err := check("listening"); err != nil {
		t.Errorf("listening: %v", err)
	}
	s.draining.Store(true)
	if check("shutdown") == nil {
		t.Error("ready while shutting down")
	}
}

func TestServeHealth(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	down := health.Check{Name: "tailnet", Check: func(context.Context) error { return io.ErrUnexpectedEOF }}
	go func() { served <- serveHealth(ctx, slog.New(slog.DiscardHandler), l, newRegistry(), down) }()
	for uri, want := range map[string]struct {
		code int
		body string
	}{
		"/livez": {200, "ok"}, "/livez/ping": {200, "ok"}, "/readyz": {500, "[-]tailnet failed: unexpected EOF"},
		"/readyz/tailnet": {500, "tailnet failed"}, "/metrics": {200, `tailhelm_build_info{version="dev"} 1`}, "/": {404, ""}, "/api": {404, ""},
	} {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.Addr().String()+uri, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != want.code || !strings.Contains(string(body), want.body) {
			t.Errorf("%s: %s with %q, want %d with %q", uri, res.Status, body, want.code, want.body)
		}
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("serving ends with %v", err)
	}
}

// Gauges of the tailnet, its certificate and being ready exist before there is either.
func TestObserve(t *testing.T) {
	s := newTestService(t, func(o *proxyOptions) { o.tls = tlsACME })
	s.registry = newRegistry()
	s.metrics = apiproxy.NewMetrics(s.registry)
	s.checks = s.newChecks()
	s.observe()
	want := `
# HELP tailhelm_certificate_expiry_timestamp_seconds When the certificate ends, as a Unix time; 0 before there is one.
# TYPE tailhelm_certificate_expiry_timestamp_seconds gauge
tailhelm_certificate_expiry_timestamp_seconds 0
# HELP tailhelm_ready 1 while /readyz says that the proxy is ready.
# TYPE tailhelm_ready gauge
tailhelm_ready 0
# HELP tailhelm_tailnet_up 1 while the device is on the tailnet.
# TYPE tailhelm_tailnet_up gauge
tailhelm_tailnet_up 0
`
	if err := testutil.GatherAndCompare(s.registry, strings.NewReader(want), "tailhelm_tailnet_up", "tailhelm_ready", "tailhelm_certificate_expiry_timestamp_seconds"); err != nil {
		t.Error(err)
	}
}

// What a client wrote into a query does not get into the log by way of a library.
func TestLibraryLogsHoldNoQueries(t *testing.T) {
	var text bytes.Buffer
	log := slog.New(withoutQueries{slog.NewJSONHandler(&text, nil)})
	log.Error("unreadable", "request", url.Values{"token": {"hunter2"}})
	log.With("from", "library").WithGroup("g").Error("unreadable", "a", 1, "request", url.Values{"token": {"hunter2"}})
	log.With("from", "library").Error("something else", "name", "pods")
	if got := text.String(); strings.Contains(got, "hunter2") || !strings.Contains(got, "something else") || strings.Count(got, "\n") != 1 {
		t.Errorf("logged:\n%s", got)
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"encoding/json"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

// checks are the names of a ready proxy's checks, in order.
var checks = []string{"shutdown", "tailnet", "certificate", "listening", "apiserver", "impersonator", "name"}

// TestHealth: the endpoints answer as those of Kubernetes' own components do.
func TestHealth(t *testing.T) {
	t.Parallel()
	var verbose strings.Builder
	for _, name := range checks {
		verbose.WriteString("[+]" + name + " ok\n")
	}
	for path, want := range map[string]struct {
		code int
		body string
	}{
		"/livez":                          {200, "ok"},
		"/livez?verbose":                  {200, "[+]ping ok\nlivez check passed\n"},
		"/livez/ping":                     {200, "ok"},
		"/readyz":                         {200, "ok"},
		"/readyz?verbose":                 {200, verbose.String() + "readyz check passed\n"},
		"/readyz?verbose&exclude=tailnet": {200, strings.Replace(verbose.String(), "[+]tailnet ok", "[+]tailnet excluded: ok", 1) + "readyz check passed\n"},
		"/readyz/tailnet":                 {200, "ok"},
		"/readyz/tailnet?verbose":         {200, "[+]tailnet ok\nreadyz check passed\n"},
		"/readyz/nonsense":                {404, "404 page not found\n"},
		"/livez/tailnet":                  {404, "404 page not found\n"},
		"/nonsense":                       {404, "404 page not found\n"},
		"/api/v1/namespaces":              {404, "404 page not found\n"},
	} {
		code, body, err := shared.proxy.Get(within(t, patience), path)
		if err != nil || code != want.code || body != want.body {
			t.Errorf("%s: %d %v\n%s\nwant %d\n%s", path, code, err, body, want.code, want.body)
		}
	}
	for _, name := range checks {
		if code, body, err := shared.proxy.Get(within(t, patience), "/readyz/"+name); err != nil || code != http.StatusOK {
			t.Errorf("/readyz/%s: %d %v\n%s", name, code, err, body)
		}
	}
}

// TestUnready: one failed check makes the proxy unready, by name and with its reason,
// and is all that is excluded by its name.
func TestUnready(t *testing.T) {
	t.Parallel()
	// A tailnet without certificates keeps --tls acme waiting.
	p := newProxy(t, proxyOptions{tailnet: tailnet.New(t, tailnet.Options{NoHTTPS: true})})
	verbose := p.readyz(t, "[+]tailnet ok", "[-]certificate failed: ", "enable HTTPS", "[+]listening ok", "[+]impersonator ok", "readyz check failed")
	for path, want := range map[string]int{
		"/livez":                      200,
		"/readyz":                     500,
		"/readyz/certificate":         500,
		"/readyz/tailnet":             200,
		"/readyz?exclude=certificate": 200,
		"/readyz?exclude=tailnet":     500,
	} {
		if code, body, err := p.Get(within(t, patience), path); err != nil || code != want {
			t.Errorf("%s: %d %v, want %d\n%s", path, code, err, want, body)
		}
	}
	// Without ?verbose, too: a failed probe is all that an event of the pod shows.
	if _, body, err := p.Get(within(t, patience), "/readyz"); err != nil || body != verbose {
		t.Errorf("/readyz: %v\n%s\nwant\n%s", err, body, verbose)
	}
}

// TestMetrics: known traffic, counted.
func TestMetrics(t *testing.T) {
	t.Parallel()
	p := newReadyProxy(t, proxyOptions{})
	const namespace = "tailhelm_apiproxy_"
	ns := newNamespace(t, group("measured"))
	c := newUser(t, p, "measured")
	tagged := newCaller(t, p, tailnet.Identity{Tags: []string{"tag:metrics"}})

	path := "/api/v1/namespaces/" + ns + "/configmaps"
	for range 3 {
		if res, body := c.get(path); res.StatusCode != http.StatusOK {
			t.Fatalf("list: %s\n%s", res.Status, body)
		}
	}
	_, _ = tagged.get(path)                        // forbidden by RBAC
	_, _ = c.get(path, "Impersonate-User", "boss") // refused by the proxy
	_, _ = c.do("NONSENSE", path, nil)             // no verb of Kubernetes
	watch, err := c.client().CoreV1().ConfigMaps(ns).Watch(within(t, patience), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.waitMetric(t, 1, namespace+"requests_in_flight", "kind=watch")
	watch.Stop()
	p.waitMetric(t, 0, namespace+"requests_in_flight", "kind=watch")

	for _, want := range []struct {
		value  float64
		name   string
		labels []string
	}{
		{3, "requests_total", []string{"verb=list", "code=200", "kind=rest"}},
		{1, "requests_total", []string{"verb=watch", "code=200", "kind=watch"}},
		// Of the tagged device, and the proxy's own refusal.
		{2, "requests_total", []string{"verb=list", "code=403", "kind=rest"}},
		{5, "request_duration_seconds", []string{"verb=list", "kind=rest"}},
		{1, "request_duration_seconds", []string{"verb=watch", "kind=watch"}},
		{1, "refusals_total", []string{"reason=impersonation_requested"}},
		{1, "refusals_total", nil},
		{1, "impersonations_total", []string{"caller=tagged"}},
		{0, "requests_in_flight", nil},
		{0, "connections_turned_away_total", nil},
	} {
		p.waitMetric(t, want.value, namespace+want.name, want.labels...)
	}
	// Three lists, a watch and the one with a strange method.
	p.waitMetric(t, 5, namespace+"impersonations_total", "caller=user")
	if n := p.metric(t, namespace+"connections"); n < 2 {
		t.Errorf("%v connections are open, want at least those of two devices", n)
	}
	if p.metric(t, "tailhelm_tailnet_up") != 1 || p.metric(t, "tailhelm_build_info") != 1 || p.metric(t, "tailhelm_ready") != 1 {
		t.Error("tailnet_up, build_info or ready is not 1")
	}
	if expiry := time.Unix(int64(p.metric(t, "tailhelm_certificate_expiry_timestamp_seconds")), 0); time.Until(expiry) < time.Hour {
		t.Errorf("the certificate expires at %v", expiry)
	}
	for name, family := range p.metrics(t) {
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if strings.Contains(l.GetValue(), "NONSENSE") || strings.Contains(l.GetValue(), c.user) {
					t.Errorf("%s has a label that a client made up: %v", name, l)
				}
			}
		}
	}
}

// TestHealthIsNotOnTheTailnet: a proxy that serves health on all addresses of its
// machine still serves it to no device of the tailnet.
func TestHealthIsNotOnTheTailnet(t *testing.T) {
	t.Parallel()
	p := newReadyProxy(t, proxyOptions{args: []string{"--metrics-address=:0"}})
	var entry struct{ Address string }
	line, err := p.WaitLog(within(t, patience), func(line string) bool { return strings.Contains(line, "serving health and metrics") })
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(line), &entry); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(entry.Address)
	if err != nil {
		t.Fatal(err)
	}
	c := newUser(t, p)
	if res, _ := c.get("/version"); res.StatusCode != http.StatusOK {
		t.Fatalf("the proxy itself: %s", res.Status)
	}
	devices := p.tailnet.Devices()
	i := slices.IndexFunc(devices, func(d tailnet.DeviceStatus) bool { return d.FQDN == p.host })
	hosts := []string{p.host}
	for _, addr := range devices[i].Addrs {
		hosts = append(hosts, addr.String())
	}
	for _, host := range hosts {
		conn, err := c.Dial(within(t, 10*time.Second), "tcp", net.JoinHostPort(host, port))
		if err == nil {
			_ = conn.Close()
			t.Errorf("%s answers on the port of health and metrics", host)
		}
	}
	// Not through the API either.
	for _, path := range []string{"/metrics", "/readyz?verbose"} {
		if res, body := c.get(path); strings.Contains(string(body), "tailhelm_") || strings.Contains(string(body), "impersonator") {
			t.Errorf("%s: %s\n%s", path, res.Status, body)
		}
	}
}

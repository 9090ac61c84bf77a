// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

// hosted waits until d knows that it is a host of the Service, or that it is
// none.
func hosted(t *testing.T, tn *tailnet.Tailnet, d *tailnet.Device, want bool) {
	t.Helper()
	waitStatus(t, d, func(status *ipnstate.Status) bool {
		mappings, err := tailcfg.UnmarshalNodeCapJSON[tailcfg.ServiceIPMappings](status.Self.CapMap, tailcfg.NodeAttrServiceHost)
		if err != nil {
			t.Fatal(err)
		}
		host := len(mappings) == 1 && len(mappings[0][serviceName]) == 2
		return host == want && slices.Contains(status.CertDomains, "kube."+tn.Domain()) == want
	})
}

// waitStatus waits until done, which gets what d knows of itself, is true.
func waitStatus(t *testing.T, d *tailnet.Device, done func(*ipnstate.Status) bool) {
	t.Helper()
	ctx := testContext(t)
	for {
		status, err := d.Local().StatusWithoutPeers(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if done(status) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for the status of %s; it is %+v, capabilities %v", d.Name(), status, status.Self.CapMap)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestServiceApproval(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{})
	if err := tn.SetService(serviceSpec); err != nil {
		t.Fatal(err)
	}
	one, laptop := device(t, tn, "one", proxy), device(t, tn, "laptop", alice)
	if err := tn.SetAutoApprovers(&tailnet.AutoApprovers{}); err != nil {
		t.Fatal(err)
	}
	serveName(t, tn, one)
	waitService(t, tn, func(s tailnet.ServiceStatus) bool {
		return slices.Equal(s.Advertising, []string{"one"}) && s.Approved == nil && s.Active == ""
	})
	hosted(t, tn, one, false)

	approve := func(approved bool) {
		t.Helper()
		if err := tn.SetServiceApproval(serviceName, "one", approved); err != nil {
			t.Fatal(err)
		}
	}
	approve(true)
	hosted(t, tn, one, true)
	if got := reach(t, tn, laptop, "one"); got != "one alice@example.com" {
		t.Errorf("after the approval: got %q", got)
	}
	approve(false)
	hosted(t, tn, one, false)
	if err := laptop.WaitServiceHost(testContext(t), serviceName, ""); err != nil {
		t.Error(err)
	}
	if err := tn.SetServiceApproval(serviceName, "nobody", true); err == nil {
		t.Error("a device that does not exist was approved")
	}
	if err := tn.SetServiceApproval("svc:none", "one", true); err == nil {
		t.Error("a host of a Service that does not exist was approved")
	}
}

func TestServiceAutoApprovers(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	if err := tn.SetService(serviceSpec); err != nil {
		t.Fatal(err)
	}
	one := device(t, tn, "one", tailnet.Identity{Tags: []string{"tag:a", "tag:proxy"}})
	laptop := device(t, tn, "laptop", alice)
	for _, d := range []*tailnet.Device{one, laptop} {
		advertise(t, d, true)
	}
	waitService(t, tn, func(s tailnet.ServiceStatus) bool { return len(s.Advertising) == 2 })
	if err := tn.SetServiceApproval(serviceName, "laptop", true); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		policy   string
		approved bool
	}{
		"none given":        {`{}`, true},
		"empty":             {`{"autoApprovers": {}}`, false},
		"by the Service":    {`{"autoApprovers": {"services": {"svc:kube": ["tag:a"]}}}`, true},
		"by its tag":        {`{"autoApprovers": {"services": {"tag:proxy": ["tag:a"]}}}`, true},
		"another tag's":     {`{"autoApprovers": {"services": {"tag:a": ["tag:a"]}}}`, false},
		"another Service's": {`{"autoApprovers": {"services": {"svc:x": ["tag:a"]}}}`, false},
		"of others":         {`{"autoApprovers": {"services": {"svc:kube": ["tag:b"]}}}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := tailnet.ParsePolicy([]byte(tc.policy))
			if err != nil {
				t.Fatal(err)
			}
			if err := tn.SetPolicy(p); err != nil {
				t.Fatal(err)
			}
			var want []string // never laptop: it has no tag
			if tc.approved {
				want = []string{"one"}
			}
			waitService(t, tn, func(s tailnet.ServiceStatus) bool { return slices.Equal(s.Approved, want) })
		})
	}
}

// TestServiceConfigured has a device be a host which clients are not sent to.
func TestServiceConfigured(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{})
	if err := tn.SetService(serviceSpec); err != nil {
		t.Fatal(err)
	}
	one := device(t, tn, "one", proxy)
	configure(t, one, 443)
	hosted(t, tn, one, true)
	for i, on := range []bool{false, true, false} {
		if i > 0 {
			advertise(t, one, on)
		}
		waitService(t, tn, func(s tailnet.ServiceStatus) bool {
			return slices.Equal(s.Approved, []string{"one"}) && (len(s.Advertising) == 1) == on && (s.Active == "one") == on
		})
	}
}

func TestServiceEdits(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	one, two := device(t, tn, "one", proxy), device(t, tn, "two", proxy)
	advertise(t, one, true)
	active := func(name string) {
		t.Helper()
		waitService(t, tn, func(s tailnet.ServiceStatus) bool { return s.Active == name })
	}
	if err := tn.SetService(serviceSpec); err != nil { // it is advertised already
		t.Fatal(err)
	}
	active("one")
	advertise(t, two, true)
	waitService(t, tn, func(s tailnet.ServiceStatus) bool { return len(s.Advertising) == 2 })
	if err := tn.Remove("one"); err != nil {
		t.Fatal(err)
	}
	active("two")
	edited := serviceSpec
	edited.Tags = []string{"tag:other"}
	if err := tn.SetService(edited); err != nil {
		t.Fatal(err)
	}
	active("")
	if err := tn.SetIdentity("two", tailnet.Identity{Tags: edited.Tags}); err != nil {
		t.Fatal(err)
	}
	active("two")
	if err := tn.DeleteService(serviceName); err != nil {
		t.Fatal(err)
	}
	if err := tn.DeleteService(serviceName); err == nil {
		t.Error("a Service was deleted twice")
	}
	if err := tn.SetService(edited); err != nil {
		t.Fatal(err)
	}
	active("two")
}

// TestServiceOutage has hosts survive a control server that was away.
func TestServiceOutage(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	if err := tn.SetService(serviceSpec); err != nil {
		t.Fatal(err)
	}
	one := device(t, tn, "one", proxy)
	advertise(t, one, true)
	waitService(t, tn, func(s tailnet.ServiceStatus) bool { return s.Active == "one" })
	if err := tn.StopControl(); err != nil {
		t.Fatal(err)
	}
	waitService(t, tn, func(s tailnet.ServiceStatus) bool { return s.Active == "" })
	if err := tn.StartControl(); err != nil {
		t.Fatal(err)
	}
	waitService(t, tn, func(s tailnet.ServiceStatus) bool { return s.Active == "one" })
}

func TestServiceGrants(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	if err := tn.SetService(serviceSpec); err != nil {
		t.Fatal(err)
	}
	err := tn.SetGrants(
		tailnet.KubernetesGrant(alice.Login, "tag:proxy", "by-host"),
		tailnet.KubernetesGrant(alice.Login, serviceName, "by-service"),
		tailnet.KubernetesGrant(alice.Login, "svc:other", "by-another"),
	)
	if err != nil {
		t.Fatal(err)
	}
	one, laptop := device(t, tn, "one", proxy), device(t, tn, "laptop", alice)
	serveName(t, tn, one)
	reach(t, tn, laptop, "one")
	addr := laptop.Addrs()[0].String()
	rules := func(who *apitype.WhoIsResponse, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, r := range kubernetesRules(who, nil) {
			all = append(all, string(r))
		}
		return strings.Join(all, " ")
	}
	byHost := rules(one.Local().WhoIs(testContext(t), addr))
	byService := rules(one.Local().WhoIsForService(testContext(t), addr, serviceName))
	for rules, want := range map[string]string{byHost: "by-host", byService: "by-service"} {
		if strings.Count(rules, "by-") != 1 || !strings.Contains(rules, want) {
			t.Errorf("rules %s, want %s alone", rules, want)
		}
	}
}

func TestServiceRestricted(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true, RestrictNetwork: true})
	if err := tn.SetService(serviceSpec); err != nil {
		t.Fatal(err)
	}
	if err := tn.SetGrants(tailnet.Grant{Src: []string{alice.Login}, Dst: []string{serviceName}, IP: []string{"tcp:80"}}); err != nil {
		t.Fatal(err)
	}
	one := device(t, tn, "one", proxy)
	serveName(t, tn, one)
	whoServer(t, one)
	laptop, phone := device(t, tn, "laptop", alice), device(t, tn, "phone", bob)
	if got := reach(t, tn, laptop, "one"); got != "one alice@example.com" {
		t.Errorf("got %q", got)
	}
	short, cancel := context.WithTimeout(testContext(t), 200*time.Millisecond)
	defer cancel()
	refuseDial(short, t, laptop, one.FQDN()+":80")
	var unknown *net.DNSError
	if _, err := phone.Dial(testContext(t), "tcp", "kube."+tn.Domain()+":80"); !errors.As(err, &unknown) {
		t.Errorf("bob's phone knows the Service: %v", err)
	}
}

func TestServiceCertificate(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{})
	if err := tn.SetService(serviceSpec); err != nil {
		t.Fatal(err)
	}
	one, laptop := device(t, tn, "one", proxy), device(t, tn, "laptop", alice)
	ln := host(t, tn, one, 443)
	hosted(t, tn, one, true)
	serve(t, ln, &tls.Config{GetCertificate: one.Local().GetCertificate}, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello")
	})
	if err := laptop.WaitServiceHost(testContext(t), serviceName, "one"); err != nil {
		t.Fatal(err)
	}
	name := "kube." + tn.Domain()
	got := get(t, laptop.HTTPClient(), "https://"+name)
	if want := (answer{http.StatusOK, "HTTP/2.0", "hello"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if n := tn.CertificateOrders(name); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
	if _, _, err := laptop.Local().CertPair(testContext(t), name); err == nil {
		t.Error("a device that is no host got the Service's certificate")
	}
	if err := tn.SetHTTPS(false); err != nil {
		t.Fatal(err)
	}
	waitStatus(t, one, func(status *ipnstate.Status) bool { return len(status.CertDomains) == 0 })
}

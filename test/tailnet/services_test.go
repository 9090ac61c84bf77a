// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	tailscale "tailscale.com/client/tailscale/v2"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

const serviceName = "svc:kube"

var serviceSpec = tailscale.VIPService{Name: serviceName, Ports: []string{"tcp:80", "tcp:443"}, Tags: []string{"tag:proxy"}}

// advertise says whether d offers to be a host of the Service.
func advertise(t *testing.T, d *tailnet.Device, on bool) {
	t.Helper()
	prefs := &ipn.MaskedPrefs{AdvertiseServicesSet: true}
	if on {
		prefs.AdvertiseServices = []string{serviceName}
	}
	if _, err := d.Local().EditPrefs(testContext(t), prefs); err != nil {
		t.Fatal(err)
	}
}

// configure makes d a host of the Service which does not advertise it.
// Connections keep their client's address: a port without a handler is left to
// the listeners of the process.
func configure(t *testing.T, d *tailnet.Device, port uint16) {
	t.Helper()
	err := d.Local().SetServeConfig(testContext(t), &ipn.ServeConfig{Services: map[tailcfg.ServiceName]*ipn.ServiceConfig{
		serviceName: {TCP: map[uint16]*ipn.TCPPortHandler{port: {}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
}

// host makes d a host of the Service, which advertises it, and returns what
// listens on its port.
func host(t *testing.T, tn *tailnet.Tailnet, d *tailnet.Device, port uint16) net.Listener {
	t.Helper()
	configure(t, d, port)
	advertise(t, d, true)
	waitService(t, tn, func(s tailnet.ServiceStatus) bool { return slices.Contains(s.Advertising, d.Name()) })
	ln, err := d.Server().Listen("tcp", fmt.Sprintf("%s:%d", tn.Services()[0].Addrs[0], port))
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func waitService(t *testing.T, tn *tailnet.Tailnet, done func(tailnet.ServiceStatus) bool) {
	t.Helper()
	if err := tn.WaitService(testContext(t), serviceName, done); err != nil {
		t.Fatal(err)
	}
}

// serveName answers HTTP on the Service by d with its name, and with what
// WhoIs says of the caller.
func serveName(t *testing.T, tn *tailnet.Tailnet, d *tailnet.Device) {
	t.Helper()
	serve(t, host(t, tn, d, 80), nil, func(w http.ResponseWriter, r *http.Request) {
		who, err := d.Local().WhoIs(r.Context(), r.RemoteAddr)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		_, _ = fmt.Fprintf(w, "%s %s", d.Name(), who.UserProfile.LoginName)
	})
}

// reach waits until the Service answers d from the host of this name.
func reach(t *testing.T, tn *tailnet.Tailnet, d *tailnet.Device, host string) string {
	t.Helper()
	waitService(t, tn, func(s tailnet.ServiceStatus) bool { return s.Active == host })
	ctx := testContext(t)
	if err := d.WaitServiceHost(ctx, serviceName, host); err != nil {
		t.Fatal(err)
	}
	d.HTTPClient().CloseIdleConnections()
	return get(t, d.HTTPClient(), "http://kube."+tn.Domain()).body
}

func TestServiceFailover(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	if err := tn.SetService(serviceSpec); err != nil {
		t.Fatal(err)
	}
	one, two := device(t, tn, "one", proxy), device(t, tn, "two", proxy)
	laptop := device(t, tn, "laptop", alice)
	serveName(t, tn, one)
	serveName(t, tn, two)
	if got := reach(t, tn, laptop, "one"); got != "one alice@example.com" {
		t.Errorf("got %q, want host one and alice", got)
	}
	advertise(t, one, false)
	if got := reach(t, tn, laptop, "two"); got != "two alice@example.com" {
		t.Errorf("after one withdrew: got %q", got)
	}
	advertise(t, one, true)
	waitService(t, tn, func(s tailnet.ServiceStatus) bool { return len(s.Advertising) == 2 })
	if got := reach(t, tn, laptop, "two"); !strings.HasPrefix(got, "two ") {
		t.Errorf("clients moved although their host serves: got %q", got)
	}
	if err := two.Close(); err != nil {
		t.Fatal(err)
	}
	if got := reach(t, tn, laptop, "one"); !strings.HasPrefix(got, "one ") {
		t.Errorf("after two ended: got %q", got)
	}
	if err := tn.DeleteService(serviceName); err != nil {
		t.Fatal(err)
	}
	if err := laptop.WaitServiceHost(testContext(t), serviceName, ""); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(testContext(t), time.Second)
	defer cancel()
	refuseDial(short, t, laptop, "kube."+tn.Domain()+":80")
}

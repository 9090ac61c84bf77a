// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/ipn"
	"tailscale.com/tsnet"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

func TestRemove(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	server, laptop := device(t, tn, "server", proxy), device(t, tn, "laptop", alice)
	addr := laptop.Addrs()[0].String()
	if err := server.WaitWhoIs(testContext(t), addr, found); err != nil {
		t.Fatal(err)
	}
	if err := tn.Remove("laptop"); err != nil {
		t.Fatal(err)
	}
	gone := func(_ *apitype.WhoIsResponse, err error) bool { return errors.Is(err, local.ErrPeerNotFound) }
	if err := server.WaitWhoIs(testContext(t), addr, gone); err != nil {
		t.Fatal(err)
	}
	if err := tn.Remove("laptop"); err == nil {
		t.Error("a device was removed twice")
	}
	again := device(t, tn, "laptop", bob)
	if again.Name() != "laptop" || again.Addrs()[0] == laptop.Addrs()[0] {
		t.Errorf("the new laptop is %s at %s", again.Name(), again.Addrs())
	}
}

func found(_ *apitype.WhoIsResponse, err error) bool { return err == nil }

func TestExpire(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	server, laptop := device(t, tn, "server", proxy), device(t, tn, "laptop", alice)
	whoServer(t, server)
	get(t, laptop.HTTPClient(), "http://server")
	if err := tn.Expire("laptop"); err != nil {
		t.Fatal(err)
	}
	expired := func(who *apitype.WhoIsResponse, err error) bool { return err == nil && who.Node.Expired }
	if err := server.WaitWhoIs(testContext(t), laptop.Addrs()[0].String(), expired); err != nil {
		t.Fatal(err)
	}
	waitState(t, laptop, ipn.NeedsLogin)
	if d := tn.Devices()[1]; d.Name != "laptop" || !d.Expired {
		t.Errorf("Devices = %+v, want an expired laptop", tn.Devices())
	}
}

func waitState(t *testing.T, d *tailnet.Device, want ipn.State) {
	t.Helper()
	w, err := d.Local().WatchIPNBus(testContext(t), ipn.NotifyInitialState)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	for {
		n, err := w.Next()
		if err != nil {
			t.Fatalf("waiting for state %v: %v", want, err)
		}
		if n.State != nil && *n.State == want {
			return
		}
	}
}

func TestSetIdentity(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	server, laptop := device(t, tn, "server", proxy), device(t, tn, "laptop", alice)
	for _, tc := range []struct {
		id    tailnet.Identity
		login string
	}{{bob, bob.Login}, {tailnet.Identity{Tags: []string{"tag:ci"}}, "tagged-devices"}, {alice, alice.Login}} {
		if err := tn.SetIdentity("laptop", tc.id); err != nil {
			t.Fatal(err)
		}
		is := func(who *apitype.WhoIsResponse, err error) bool {
			return err == nil && who.UserProfile.LoginName == tc.login && len(who.Node.Tags) == len(tc.id.Tags)
		}
		if err := server.WaitWhoIs(testContext(t), laptop.Addrs()[0].String(), is); err != nil {
			t.Error(err)
		}
	}
	if err := tn.SetIdentity("laptop", tailnet.Identity{Tags: []string{"ci"}}); err == nil {
		t.Error("a malformed tag was accepted")
	}
	if err := tn.SetIdentity("nobody", alice); err == nil {
		t.Error("an unknown device was accepted")
	}
}

func TestControlRestart(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	server, laptop := device(t, tn, "server", proxy), device(t, tn, "laptop", alice)
	whoServer(t, server)
	if err := tn.StopControl(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"server", "laptop"} {
		if err := tn.WaitOnline(testContext(t), name, false); err != nil {
			t.Fatal(err)
		}
	}
	if got := get(t, laptop.HTTPClient(), "http://server").body; got != "alice@example.com [] 0" {
		t.Errorf("without control WhoIs is %q", got)
	}
	if err := tn.SetIdentity("laptop", bob); err != nil {
		t.Fatal(err)
	}
	if err := tn.StartControl(); err != nil {
		t.Fatal(err)
	}
	if err := tn.StartControl(); err == nil {
		t.Error("a running control server started again")
	}
	isBob := func(who *apitype.WhoIsResponse, err error) bool {
		return err == nil && who.UserProfile.LoginName == bob.Login
	}
	if err := server.WaitWhoIs(testContext(t), laptop.Addrs()[0].String(), isBob); err != nil {
		t.Fatal(err)
	}
	device(t, tn, "late", bob)
}

func TestRestrictNetwork(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true, RestrictNetwork: true})
	if err := tn.SetGrants(tailnet.Grant{Src: []string{alice.Login}, Dst: []string{"tag:proxy"}, IP: []string{"tcp:80"}}); err != nil {
		t.Fatal(err)
	}
	server, laptop, phone := device(t, tn, "server", proxy), device(t, tn, "laptop", alice), device(t, tn, "phone", bob)
	whoServer(t, server)
	if got := get(t, laptop.HTTPClient(), "http://server").body; got != "alice@example.com [] 0" {
		t.Errorf("alice gets %q", got)
	}
	if _, err := server.Local().WhoIs(testContext(t), phone.Addrs()[0].String()); !errors.Is(err, local.ErrPeerNotFound) {
		t.Errorf("WhoIs of a device without access = %v, want not found", err)
	}
	tn.RestrictNetwork(false)
	for _, pair := range [][2]*tailnet.Device{{server, phone}, {phone, server}} {
		if err := pair[0].WaitWhoIs(testContext(t), pair[1].Addrs()[0].String(), found); err != nil {
			t.Fatal(err)
		}
	}
	if got := get(t, phone.HTTPClient(), "http://server").body; got != "bob@example.com [] 0" {
		t.Errorf("bob gets %q", got)
	}
}

// TestKeptState starts a node again and again with the state it has kept.
func TestKeptState(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	dir := t.TempDir()
	start := func(key string) (*tsnet.Server, error) {
		s := &tsnet.Server{Dir: dir, Hostname: "laptop", ControlURL: tn.URL(), AuthKey: key, UserLogf: func(string, ...any) {}}
		_, err := s.Up(testContext(t))
		return s, err
	}
	one := func(what string) tailnet.DeviceStatus {
		t.Helper()
		devices := tn.Devices()
		if len(devices) != 1 || devices[0].Name != "laptop" {
			t.Fatalf("%s: %+v, want one laptop", what, devices)
		}
		return devices[0]
	}
	for _, tc := range []struct{ name, key string }{
		{"first", tn.AuthKey(alice)}, {"without a key", ""}, {"with a bad key", "tskey-auth-bad"},
	} {
		s, err := start(tc.key)
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		one(tc.name)
	}
	s, err := start("")
	if err != nil {
		t.Fatal(err)
	}
	if err := tn.WaitOnline(testContext(t), "laptop", true); err != nil {
		t.Fatal(err)
	}
	lc, err := s.LocalClient()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(lc.Logout(testContext(t)), s.Close()); err != nil {
		t.Fatal(err)
	}
	if d := one("logged out"); !d.Expired {
		t.Errorf("after the logout: %+v, want it expired", d)
	}
	for _, what := range []string{"after a logout", "after expiry"} {
		s, err = start(tn.AuthKey(alice))
		if err != nil {
			t.Fatal(err)
		}
		// Up may have returned with the netmap that the node has kept, before
		// it logged in.
		loggedIn := func(d []tailnet.DeviceStatus) bool { return len(d) == 1 && d[0].Online && !d[0].Expired }
		if err := tn.WaitDevices(testContext(t), loggedIn); err != nil {
			t.Fatalf("logging in again %s: %v", what, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		one(what)
		if err := tn.Expire("laptop"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEphemeralLogout(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	key := tn.CreateKey(tailnet.KeyOptions{Identity: alice, Ephemeral: true})
	s := &tsnet.Server{Dir: t.TempDir(), Hostname: "job", ControlURL: tn.URL(), AuthKey: key, UserLogf: func(string, ...any) {}}
	if _, err := s.Up(testContext(t)); err != nil {
		t.Fatal(err)
	}
	lc, err := s.LocalClient()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(lc.Logout(testContext(t)), s.Close()); err != nil {
		t.Fatal(err)
	}
	if devices := tn.Devices(); len(devices) != 0 {
		t.Errorf("after the logout: %+v, want none", devices)
	}
}

func TestC2N(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	device(t, tn, "server", proxy)
	for range 3 {
		req, err := http.NewRequestWithContext(testContext(t), http.MethodPost, "http://unused/echo", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := tn.C2N(testContext(t), "server", req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != http.StatusOK || string(body) != "hello" {
			t.Errorf("echo = %s %q", res.Status, body)
		}
	}
}

func TestUnknownPaths(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	for _, path := range []string{"/", "/healthz", "/machine/map", "/api/v2/nothing", "/acme/dir"} {
		if got := get(t, http.DefaultClient, tn.URL()+path); got.code != http.StatusNotFound {
			t.Errorf("GET %s = %d, want 404", path, got.code)
		}
	}
}

func TestCertificateFaults(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{})
	server := device(t, tn, "server", proxy)
	issue := func() error {
		ctx, cancel := context.WithTimeout(testContext(t), 30*time.Second)
		defer cancel()
		_, _, err := server.Local().CertPair(ctx, server.FQDN())
		return err
	}
	for name, tc := range map[string]struct {
		path  string
		fault tailnet.Fault
		want  string
	}{
		"authority down":  {tailnet.PathACME, tailnet.Fault{Status: http.StatusForbidden}, "403"},
		"order refused":   {tailnet.PathACMENewOrder, tailnet.Fault{Status: http.StatusForbidden, Problem: "rejectedIdentifier", Message: "no such names"}, "no such names"},
		"not signed":      {tailnet.PathACMEFinalize, tailnet.Fault{Status: http.StatusForbidden, Message: "not today"}, "not today"},
		"set-dns refused": {tailnet.PathSetDNS, tailnet.Fault{Status: http.StatusInternalServerError, Message: "no DNS"}, "no DNS"},
	} {
		t.Run(name, func(t *testing.T) {
			defer tn.Fail(tc.path, tc.fault)()
			if err := issue(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("CertPair = %v, want %q", err, tc.want)
			}
		})
	}
	if err := tn.SetHTTPS(false); err != nil {
		t.Fatal(err)
	}
	noDomains := func() bool {
		status, err := server.Local().StatusWithoutPeers(testContext(t))
		return err == nil && len(status.CertDomains) == 0
	}
	waitFor(t, "no certificate domains", noDomains)
	if err := issue(); err == nil {
		t.Error("a certificate was issued without HTTPS")
	}
	if err := tn.SetHTTPS(true); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "certificate domains", func() bool { return !noDomains() })
	if err := issue(); err != nil {
		t.Error(err)
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx := testContext(t)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %v", what, ctx.Err())
		case <-tick.C:
		}
	}
}

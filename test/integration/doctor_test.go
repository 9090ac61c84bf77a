// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/tailhelm/tailhelm/internal/doctor"
	"github.com/tailhelm/tailhelm/internal/kubeconfig"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// doctor runs the doctor on the caller's device. An answer that does not come is waited
// for a third of the timeout.
func (c *caller) doctor(name string, timeout time.Duration) doctor.Report {
	c.t.Helper()
	target, err := kubeconfig.ParseTarget(name, false)
	noError(c.t, err)
	return doctor.Doctor{
		Tailscaled: c.Local(), Lookup: c.lookup, Dial: c.Dial, Timeout: timeout,
		Kubeconfig: func() (*clientcmdapi.Config, error) { return clientcmd.LoadFromFile(c.kubeconfig) },
	}.Run(c.t.Context(), target)
}

// lookup asks MagicDNS of the caller's device.
func (c *caller) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	reply, _, err := c.Local().QueryDNS(ctx, name, "A")
	if err != nil {
		return nil, err
	}
	var m dnsmessage.Message
	if err := m.Unpack(reply); err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, answer := range m.Answers {
		if a, ok := answer.Body.(*dnsmessage.AResource); ok {
			addrs = append(addrs, netip.AddrFrom4(a.A))
		}
	}
	if len(addrs) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return addrs, nil
}

// checkDoctor checks that a step ended with a status and says words, and, if it failed, that
// no step before it did, and none after it was tried.
func checkDoctor(t *testing.T, report doctor.Report, step string, status doctor.Status, words ...string) {
	t.Helper()
	before := true
	for _, s := range report.Steps {
		switch {
		case s.Name == step:
			before = false
			for _, word := range words {
				if s.Status != status || !strings.Contains(s.Found+"\n"+s.Advice, word) {
					t.Errorf("%+v, want %s with %q", s, status, word)
				}
			}
		case s.Name == doctor.StepKubeconfig:
		case before && s.Status != doctor.OK, !before && status == doctor.Failed && s.Status != doctor.NotTried:
			t.Errorf("%+v, where %s has the status %s", s, step, status)
		}
	}
	if report.OK != (status != doctor.Failed) {
		t.Errorf("the report is ok: %t", report.OK)
	}
}

// TestDoctor: a user with a grant learns who they are, one without that nobody granted
// them anything, and both that nothing is in the way.
func TestDoctor(t *testing.T) {
	t.Parallel()
	c := newUser(t, shared.proxy, "doctor-readers")
	name, _, _ := strings.Cut(shared.proxy.host, ".")
	for _, name := range []string{name, shared.proxy.host, shared.proxy.url("")} {
		report := c.doctor(name, patience)
		checkDoctor(t, report, doctor.StepIdentity, doctor.OK, "you are "+c.user, "in the groups doctor-readers")
		checkDoctor(t, report, doctor.StepTLS, doctor.OK, "for "+shared.proxy.host)
		checkDoctor(t, report, doctor.StepVersion, doctor.OK, "Kubernetes v1.")
		checkDoctor(t, report, doctor.StepKubeconfig, doctor.OK, "the current context \""+shared.proxy.host+"\"")
	}
	checkDoctor(t, c.doctor("nothing", patience), doctor.StepName, doctor.Failed, "no device or Service nothing."+shared.tailnet.Domain())

	without := newUser(t, shared.proxy)
	checkDoctor(t, without.doctor(name, patience), doctor.StepIdentity, doctor.OK, "you are "+without.user, "in no group of a grant")
	machine := newCaller(t, shared.proxy, tailnet.Identity{Tags: []string{"tag:ci"}})
	checkDoctor(t, machine.doctor(name, patience), doctor.StepIdentity, doctor.OK, "you are "+machine.FQDN(), "in the groups tag:ci")
}

// TestDoctorNoAuth: no credentials are sent, so the doctor sees that they are missing.
func TestDoctorNoAuth(t *testing.T) {
	t.Parallel()
	c := newUser(t, newNoAuthProxy(t))
	report := c.doctor(c.proxy.host, patience)
	for _, s := range report.Steps {
		if s.Name == doctor.StepIdentity && (s.Status != doctor.NotTried || !strings.Contains(s.Found, "mode noauth")) {
			t.Errorf("%+v, want the mode", s)
		}
		if s.Name == doctor.StepKubeconfig && (s.Status != doctor.Failed || !strings.Contains(s.Advice, "--mode=noauth")) {
			t.Errorf("%+v, want the unused token", s)
		}
	}
}

// TestDoctorService: a Service is no device, and leads to its replicas.
func TestDoctorService(t *testing.T) {
	t.Parallel()
	g := newGroup(t, shared.tailnet, 1)
	c := g.caller(tailnet.Identity{Login: unique("user") + "@example.com"}, g.startReady(1)...)
	report := c.doctor(g.name, patience)
	checkDoctor(t, report, doctor.StepName, doctor.OK, "the Service "+c.proxy.host)
	checkDoctor(t, report, doctor.StepIdentity, doctor.OK, "you are "+c.user)
}

// TestDoctorNetwork: without a grant for the network a device does not see the proxy, and
// with one for another port it gets no answer.
func TestDoctorNetwork(t *testing.T) {
	t.Parallel()
	p := newReadyProxy(t, proxyOptions{tailnet: tailnet.New(t, tailnet.Options{RestrictNetwork: true})})
	stranger := newUser(t, p)
	checkDoctor(t, stranger.doctor(p.host, patience), doctor.StepName, doctor.Failed, "no device or Service "+p.host, "grant")

	login := unique("user") + "@example.com"
	grant(t, p.tailnet, tailnet.Grant{Src: []string{login}, Dst: []string{proxyTag}, IP: []string{"tcp:22"}})
	c := newCaller(t, p, tailnet.Identity{Login: login})
	checkDoctor(t, c.doctor(p.host, 6*time.Second), doctor.StepConnect, doctor.Failed, "no answer on port 443", `"ip": ["tcp:443"]`)

	grant(t, p.tailnet, tailnet.Grant{Src: []string{login}, Dst: []string{proxyTag}, IP: []string{"tcp:443"}})
	eventually(t, "the way to the proxy", func() bool { return c.doctor(p.host, 6*time.Second).OK })
}

// TestDoctorStopped: a proxy that is stopped is offline, and one whose device was removed
// is nowhere.
func TestDoctorStopped(t *testing.T) {
	t.Parallel()
	p := newReadyProxy(t, proxyOptions{})
	c := newUser(t, p)
	name, _, _ := strings.Cut(p.host, ".")
	checkDoctor(t, c.doctor(name, patience), doctor.StepIdentity, doctor.OK, c.user)

	noError(t, p.stop(t.Context()))
	eventually(t, "the proxy to be offline", func() bool {
		status, err := c.Local().Status(t.Context())
		noError(t, err)
		for _, peer := range status.Peer {
			if peer.DNSName == p.host+"." {
				return !peer.Online
			}
		}
		return false
	})
	checkDoctor(t, c.doctor(name, 6*time.Second), doctor.StepConnect, doctor.Failed, "no answer on port 443", "it is offline", "pods run")

	noError(t, p.tailnet.Remove(name))
	eventually(t, "the proxy to be gone", func() bool {
		_, err := c.lookup(t.Context(), p.host)
		return err != nil
	})
	checkDoctor(t, c.doctor(name, patience), doctor.StepName, doctor.Failed, "no device or Service "+p.host)
}

// TestDoctorOtherName: a certificate for another name is named.
func TestDoctorOtherName(t *testing.T) {
	t.Parallel()
	volume := secretVolume{t.TempDir()}
	cert, key := selfSigned(t, 1, "kube.example.com", time.Now().AddDate(1, 0, 0))
	volume.set(t, map[string][]byte{"tls.crt": cert, "tls.key": key})
	p := newReadyProxy(t, proxyOptions{args: []string{"--tls=file", "--tls-cert-file=" + volume.path("tls.crt"), "--tls-key-file=" + volume.path("tls.key")}})
	c := newUser(t, p)
	checkDoctor(t, c.doctor(p.host, patience), doctor.StepTLS, doctor.Failed, "not "+p.host, "for kube.example.com, by CN=kube.example.com", "Use a name that the certificate has")
}

// TestKubeconfigEntries: kubectl uses what "tailhelm kubeconfig" writes, and keeps the CA
// and the way to the proxy that were there.
func TestKubeconfigEntries(t *testing.T) {
	t.Parallel()
	p := newReadyProxy(t, proxyOptions{args: []string{"--allow-fewer-groups"}})
	c := newUser(t, p, "entries-a", "entries-b")
	status, err := c.Local().Status(t.Context())
	noError(t, err)
	self, err := kubeconfig.Self(status)
	noError(t, err)
	paths := clientcmd.NewDefaultPathOptions()
	paths.LoadingRules.ExplicitPath = c.kubeconfig
	entries := kubeconfig.Entries{Target: kubeconfig.Target{Scheme: "https", Host: p.host}}
	_, err = kubeconfig.Write(paths, entries)
	noError(t, err)
	entries.Context, entries.As, entries.Groups = "few", self, []string{"entries-b"}
	_, err = kubeconfig.Write(paths, entries)
	noError(t, err)

	if out := c.mustKubectl("auth", "whoami"); !strings.Contains(out, c.user) || !strings.Contains(out, "[entries-a entries-b system:authenticated]") {
		t.Errorf("with all groups:\n%s", out)
	}
	if out := c.mustKubectl("--context=few", "auth", "whoami"); !strings.Contains(out, c.user) || !strings.Contains(out, "[entries-b system:authenticated]") {
		t.Errorf("with one group:\n%s", out)
	}
}

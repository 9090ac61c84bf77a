// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/tailhelm/tailhelm/test/tailhelm"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// usedPort returns an address of this machine at which somebody listens.
func usedPort(t *testing.T) string {
	t.Helper()
	l := must[net.Listener](t)(new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0"))
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

// TestMetricsPortInUse: in one line, and before the tailnet is joined.
func TestMetricsPortInUse(t *testing.T) {
	t.Parallel()
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	address := usedPort(t)
	o := proxyOptions{hostname: unique("proxy"), dir: t.TempDir(), tailnet: tn, kubeconfig: shared.impersonator, mode: "auth", args: []string{"--metrics-address", address}}
	standalone := must[tailhelm.Command](t)(o.command())
	i := newInstall(t, tn, oauthValues(tn)...)
	i.command.Args = append(i.command.Args, "--metrics-address="+address)
	for name, command := range map[string]tailhelm.Command{"proxy": standalone, "operator": i.command} {
		p := must[*tailhelm.Process](t)(tailhelm.Start(t.Context(), command))
		code, err := p.Wait(within(t, patience))
		noError(t, err)
		log := p.Log()
		if code != 2 || len(log) != 1 || !strings.Contains(log[0], "--metrics-address=\""+address+"\"") || !strings.Contains(log[0], "address already in use") {
			t.Errorf("%s: status %d, want 2 and one line about the address:\n%s", name, code, strings.Join(log, "\n"))
		}
	}
	if devices := tn.Devices(); len(devices) > 0 || tn.Calls("/") > 0 {
		t.Errorf("the tailnet was spoken to: %d requests, devices %+v", tn.Calls("/"), devices)
	}
}

// TestUnknownImpersonator: a ServiceAccount that there is not is named, and nobody is
// served in its place.
func TestUnknownImpersonator(t *testing.T) {
	t.Parallel()
	i := newInstall(t, shared.tailnet, oauthValues(shared.tailnet)...)
	i.command.Args = append(i.command.Args, "--impersonator=nobody")
	p := i.start()
	p.readyz(t, "[-]impersonator failed: ", "ServiceAccount "+i.namespace+"/nobody", "[+]tailnet ok", "[+]certificate ok", "readyz check failed")
	c := newOperatorUser(t, p)
	_, stderr, err := c.kubectl("auth", "whoami")
	if err == nil || !strings.Contains(stderr, "cannot get the credentials with which it impersonates") {
		t.Errorf("auth whoami: %v\n%s", err, stderr)
	}
	if e := p.waitRequest(t, func(e logEntry) bool { return e.User == c.user }); e.Code != http.StatusServiceUnavailable || !strings.Contains(e.Error, i.namespace+"/nobody") {
		t.Errorf("the log says %+v", e)
	}
}

// TestAllowSystemMasters: the group that may do everything is nobody's, unless the
// operator is told otherwise.
func TestAllowSystemMasters(t *testing.T) {
	t.Parallel()
	i := newInstall(t, shared.tailnet, oauthValues(shared.tailnet)...)
	p := i.start()
	noError(t, p.WaitReady(within(t, patience)))
	c := newOperatorUser(t, p, "system:masters")
	for _, args := range [][]string{{"get", "secrets", "-A"}, {"create", "configmap", "mine", "-n", "default"}} {
		_, stderr, err := c.kubectl(args...)
		if err == nil || !strings.Contains(stderr, `the Kubernetes group "system:masters", which this proxy gives to nobody. Ask an administrator`) {
			t.Errorf("kubectl %q: %v\n%s", args, err, stderr)
		}
	}
	newOperatorUser(t, p, "others").mustServe()
	noError(t, p.stop(t.Context()))

	i.command.Args = append(i.command.Args, "--allow-system-masters")
	p = i.start()
	noError(t, p.WaitReady(within(t, patience)))
	p.catchUp(t)
	if out := c.mustKubectl("auth", "whoami"); !strings.Contains(out, c.user) || !strings.Contains(out, "[system:masters system:authenticated]") {
		t.Errorf("auth whoami:\n%s", out)
	}
	c.mustKubectl("get", "secrets", "-A")
}

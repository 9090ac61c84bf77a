// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"tailscale.com/tailcfg"

	"github.com/tailhelm/tailhelm/test/kubernetes"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// ownCluster starts a cluster for one test, with a proxy in front of it which
// impersonates. Members of the group masters may do everything in it.
func ownCluster(t *testing.T, flags ...string) (*kubernetes.Cluster, *proxy) {
	t.Helper()
	cluster := kubernetes.New(t, kubernetes.Options{APIServerFlags: flags})
	ctx := within(t, patience)
	kubeconfig, err := installImpersonator(ctx, cluster)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cluster.Client().RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "masters"}, Subjects: []rbacv1.Subject{group("masters")},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return cluster, newReadyProxy(t, proxyOptions{kubeconfig: kubeconfig})
}

// TestAPIServerDown: without the API server the proxy says what is missing, to
// clients and to probes, and needs no restart when it is back.
func TestAPIServerDown(t *testing.T) {
	t.Parallel()
	cluster, p := ownCluster(t)
	c := newUser(t, p, "masters")
	c.mustKubectl("get", "namespaces")
	for name, stop := range map[string]func() error{
		"stopped": func() error { return cluster.StopAPIServer(within(t, patience)) },
		"killed":  cluster.KillAPIServer,
	} {
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if _, stderr, err := c.kubectl("get", "namespaces"); err == nil || !strings.Contains(stderr, "The Kubernetes API server cannot be reached from the proxy") || !strings.Contains(stderr, "/readyz?verbose") {
			t.Errorf("%s: kubectl: %v\n%s", name, err, stderr)
		}
		res, body := c.get("/version")
		if res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), `"reason":"ServiceUnavailable"`) {
			t.Errorf("%s: %s\n%s", name, res.Status, body)
		}
		p.readyz(t, "[-]apiserver failed: ", cluster.URL(), "[+]tailnet ok", "readyz check failed")
		if code, _, err := p.Get(within(t, patience), "/livez"); err != nil || code != http.StatusOK {
			t.Errorf("%s: /livez: %d %v", name, code, err)
		}
		if err := cluster.StartAPIServer(within(t, patience)); err != nil {
			t.Fatal(err)
		}
		if err := p.WaitReady(within(t, patience)); err != nil {
			t.Fatal(err)
		}
		if out := c.mustKubectl("auth", "whoami"); !strings.Contains(out, c.user) {
			t.Errorf("%s: afterwards:\n%s", name, out)
		}
	}
	if n := p.metric(t, "tailhelm_apiproxy_refusals_total", "reason=apiserver_unreachable"); n < 4 {
		t.Errorf("%v refusals are counted, want 4 at least", n)
	}
}

// TestGoAway: an API server that ends connections at will, as one behind a load
// balancer is told to, costs no request.
func TestGoAway(t *testing.T) {
	t.Parallel()
	_, p := ownCluster(t, "--goaway-chance=0.02")
	const workers, rounds = 4, 250
	c := newUser(t, p, "masters")
	var all sync.WaitGroup
	for worker := range workers {
		maps := c.client().CoreV1().ConfigMaps("default")
		all.Go(func() {
			for round := range rounds {
				name := fmt.Sprintf("goaway-%d-%d", worker, round)
				object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"data": strings.Repeat("x", round)}}
				if _, err := maps.Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
					t.Errorf("create %s: %v", name, err)
					return
				}
				if got, err := maps.Get(t.Context(), name, metav1.GetOptions{}); err != nil || len(got.Data["data"]) != round {
					t.Errorf("get %s: %v %v", name, got, err)
					return
				}
			}
		})
	}
	all.Wait()
	if t.Failed() {
		return
	}
	for verb, code := range map[string]string{"create": "201", "get": "200"} {
		p.waitMetric(t, workers*rounds, "tailhelm_apiproxy_requests_total", "verb="+verb, "code="+code)
	}
}

// TestKilled: after a crash the same device serves again.
func TestKilled(t *testing.T) {
	t.Parallel()
	o := proxyOptions{hostname: unique("killed"), dir: t.TempDir()}
	p, err := startProxy(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitReady(within(t, patience)); err != nil {
		t.Fatal(errors.Join(err, p.stop(context.Background())))
	}
	before := deviceOf(t, p)
	c := newUser(t, p, "killed")
	watch, err := c.client().CoreV1().Namespaces().Watch(within(t, patience), metav1.ListOptions{})
	if err == nil { // it may be forbidden: then there is nothing to cut off
		defer watch.Stop()
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(within(t, patience)); err != nil || code != -1 {
		t.Fatalf("killed: %d %v", code, err)
	}
	again := newReadyProxy(t, o)
	if now := deviceOf(t, again); now.ID != before.ID || now.FQDN != before.FQDN {
		t.Errorf("device %+v, was %+v", now, before)
	}
	// The same caller, whose device had connections to the one that died.
	c.proxy = again
	eventually(t, "an answer to the same caller", func() bool {
		who, err := c.whoami()
		return err == nil && who.Username == c.user && slices.Contains(who.Groups, "killed")
	})
	if n := shared.tailnet.CertificateOrders(again.host); n != 1 {
		t.Errorf("%d certificate orders, want 1", n)
	}
}

// TestRemoved: a device that is removed from the tailnet while its proxy runs says so, and
// serves the same callers as another device with the same name and certificate.
func TestRemoved(t *testing.T) {
	t.Parallel()
	p := newReadyProxy(t, proxyOptions{})
	c := newUser(t, p, "removed")
	c.mustServe()
	before := deviceOf(t, p)
	noError(t, p.tailnet.Remove(before.Name))
	p.readyz(t, "[-]tailnet failed: this device was removed from the tailnet")
	noError(t, p.WaitReady(within(t, patience)))
	if now := deviceOf(t, p); now.ID == before.ID || now.FQDN != before.FQDN {
		t.Errorf("device %+v, was %+v", now, before)
	}
	eventually(t, "an answer to the same caller", func() bool {
		who, err := c.whoami()
		return err == nil && who.Username == c.user && slices.Contains(who.Groups, "removed")
	})
	if n := p.tailnet.CertificateOrders(p.host); n != 1 {
		t.Errorf("%d certificate orders, want 1", n)
	}
}

// TestRestartWithoutControlServer: grants may have been revoked while a proxy was down.
// Until the control server has spoken it knows nobody, on a tailnet whose devices keep
// what that said last, too.
func TestRestartWithoutControlServer(t *testing.T) {
	t.Parallel()
	tn := tailnet.New(t, tailnet.Options{NodeAttrs: []tailcfg.NodeCapability{tailcfg.NodeAttrCacheNetworkMaps}})
	o := proxyOptions{tailnet: tn, hostname: unique("restarted"), dir: t.TempDir()}
	before := newReadyProxy(t, o)
	newUser(t, before).mustServe()
	noError(t, before.stop(t.Context()))

	restore := tn.Fail(tailnet.PathMap, tailnet.Fault{Status: http.StatusInternalServerError})
	calls := tn.Calls(tailnet.PathMap)
	p := newProxy(t, o)
	eventually(t, "the device to ask for its netmap, again and again", func() bool { return tn.Calls(tailnet.PathMap) >= calls+3 })
	p.readyz(t, "[-]tailnet failed: ", "readyz check failed")
	restore()
	noError(t, p.WaitReady(within(t, patience)))
	newUser(t, p).mustServe()
}

// TestControlServerDown: what a proxy knows of the tailnet is enough to go on, for
// as long as the control server is away.
func TestControlServerDown(t *testing.T) {
	t.Parallel()
	tn := tailnet.New(t, tailnet.Options{})
	p := newReadyProxy(t, proxyOptions{tailnet: tn})
	granted, tagged := newUser(t, p, "granted"), newCaller(t, p, tailnet.Identity{Tags: []string{"tag:ci"}})
	granted.mustServe()
	tagged.mustServe()
	if err := tn.StopControl(); err != nil {
		t.Fatal(err)
	}
	check := func(c *caller, groups ...string) {
		t.Helper()
		// A new client makes a new connection.
		who, err := c.whoami()
		if err != nil || who.Username != c.user || !slices.Equal(who.Groups, append(groups, "system:authenticated")) {
			t.Errorf("%+v %v, want %s in %v", who, err, c.user, groups)
		}
	}
	for range 3 {
		check(granted, "granted")
		check(tagged, "tag:ci")
	}
	if out := granted.mustKubectl("auth", "whoami"); !strings.Contains(out, granted.user) {
		t.Errorf("kubectl auth whoami:\n%s", out)
	}
	if err := p.WaitReady(within(t, patience)); err != nil {
		t.Error(err)
	}
	// What changes meanwhile is heard of afterwards.
	grant(t, tn, tailnet.KubernetesGrant(granted.user, proxyTag, "later"))
	if err := tn.StartControl(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the change of the grants", func() bool {
		who, err := granted.whoami()
		return err == nil && slices.Equal(who.Groups, []string{"granted", "later", "system:authenticated"})
	})
	check(tagged, "tag:ci")
	newUser(t, p).mustServe()
}

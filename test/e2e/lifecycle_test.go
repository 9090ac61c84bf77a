// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tailhelm/tailhelm/test/e2e/framework"
)

// auth is the permutation that the tests of this file install.
var auth = permutation{example: "auth", prepare: oauth}

// installed is a new release of auth that is ready.
func installed(t *testing.T, name string) *framework.Release {
	t.Helper()
	r := suite.NewRelease(t, name, nil)
	r.Files = []string{auth.example}
	oauth(t, r)
	r.Upgrade(t)
	return r
}

// sameDevice runs change, which replaces the operator's pod, and checks that the new pod
// is the same device with the same certificate, and works.
func sameDevice(t *testing.T, r *framework.Release, change func(pod corev1.Pod)) corev1.Pod {
	t.Helper()
	before, pod := r.Device(t), r.WaitReady(t, "")
	orders := suite.Tailnet.CertificateOrders(before.FQDN)
	change(pod)
	next := r.WaitReady(t, pod.Name)
	after := r.Device(t)
	if after.ID != before.ID || after.FQDN != before.FQDN {
		t.Errorf("the device is %s (%s), before it was %s (%s)", after.FQDN, after.ID, before.FQDN, before.ID)
	}
	if n := suite.Tailnet.CertificateOrders(after.FQDN); n != orders {
		t.Errorf("%d certificates were ordered anew", n-orders)
	}
	checkIdentities(t, r, auth)
	return next
}

func checkIdentities(t *testing.T, r *framework.Release, p permutation) {
	t.Helper()
	for _, c := range callersOf(t, r, p) {
		c.CheckIdentity(t)
	}
}

func TestPodDeleted(t *testing.T) {
	t.Parallel()
	r := installed(t, "pod-deleted")
	sameDevice(t, r, func(pod corev1.Pod) {
		if err := suite.Kube.CoreV1().Pods(r.Namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestNodeDrained(t *testing.T) {
	control, err := suite.ControlPlane()
	if err != nil {
		t.Fatal(err)
	}
	// So that the pod is first on the other node, and then comes here.
	cordon(t, control.String(), true)
	r := installed(t, "node-drained")
	cordon(t, control.String(), false)
	first := r.WaitReady(t, "").Spec.NodeName
	t.Cleanup(func() { cordon(t, first, false) })
	next := sameDevice(t, r, func(corev1.Pod) {
		out, err := suite.Kubectl(t.Context(), "drain", first, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=2m").CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl drain: %v\n%s", err, out)
		}
	})
	if next.Spec.NodeName == first {
		t.Errorf("the pod is on the drained node %s", first)
	}
}

// cordon keeps new pods from a node, or lets them in.
func cordon(t *testing.T, node string, on bool) {
	t.Helper()
	patch := []byte(`{"spec": {"unschedulable": false}}`)
	if on {
		patch = []byte(`{"spec": {"unschedulable": true}}`)
	}
	// Also when the test's own context has ended.
	if _, err := suite.Kube.CoreV1().Nodes().Patch(context.WithoutCancel(t.Context()), node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
}

// TestModeChanged upgrades a release to the other mode, and rolls it back.
func TestModeChanged(t *testing.T) {
	t.Parallel()
	r := installed(t, "mode-changed")
	id := r.Device(t).ID
	checkIdentities(t, r, auth)
	r.Values["apiServerProxyConfig.mode"] = "noauth"
	r.Upgrade(t)
	checkIdentities(t, r, permutation{callers: tokens})
	r.Rollback(t, "1")
	checkIdentities(t, r, auth)
	if after := r.Device(t); after.ID != id {
		t.Errorf("the device is %s, before it was %s", after.ID, id)
	}
}

// TestManifests installs with kubectl apply, as the comments in the manifests say. It is
// alone: to delete the manifests is to delete the definitions of ProxyGroups and Recorders,
// with all that there are in the cluster.
func TestManifests(t *testing.T) {
	r := suite.NewRelease(t, "tailscale", nil)
	r.Name, r.Hostname = "operator", "tailscale-operator"
	files := []string{framework.Root + "/manifests/operator.yaml", framework.Root + "/manifests/authproxy-rbac.yaml"}
	r.Apply(t, files...)
	r.WaitReady(t, "")
	use(t, r, auth)
	sameDevice(t, r, func(corev1.Pod) {
		out, err := suite.Kubectl(t.Context(), "--namespace="+r.Namespace, "rollout", "restart", "deployment/"+r.Deployment).CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl rollout restart: %v\n%s", err, out)
		}
	})
	r.DeleteManifests(t, files...)
	checkGone(t, r, true) // kubectl delete cleans up nothing in the tailnet
}

// TestImpersonationAllowed is the third of the documented commands: what proxies outside
// of the cluster impersonate with, and no proxy in it.
func TestImpersonationAllowed(t *testing.T) {
	t.Parallel()
	r := suite.NewRelease(t, "impersonation-allowed", nil)
	oauth(t, r)
	r.Values["apiServerProxyConfig.allowImpersonation"] = "true"
	r.Upgrade(t)
	token, err := suite.Token(t.Context(), r.Namespace, "kube-apiserver-auth-proxy")
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(suite.Config)
	config.BearerToken = token
	config.Impersonate = rest.ImpersonationConfig{UserName: framework.Alice, Groups: []string{framework.Admins}}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Pods(framework.Work).List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("the ServiceAccount cannot impersonate: %v", err)
	}
	config.Impersonate = rest.ImpersonationConfig{}
	if client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Pods(framework.Work).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing pods without impersonation: %v, want that it is forbidden", err)
	}
	for _, d := range r.Devices() {
		t.Errorf("there is a device %s, but the proxy is off", d.FQDN)
	}
	r.Uninstall(t)
	checkGone(t, r, false)
}

// TestControlServerRestarts takes the control server away: calls go on. A pod that starts
// meanwhile says why it is not ready, and gets ready by itself when the control server is
// back.
func TestControlServerRestarts(t *testing.T) {
	r := installed(t, "control-restarts")
	callers := callersOf(t, r, auth)
	stopped := false
	start := func() {
		if err := suite.Tailnet.StartControl(); err != nil {
			t.Fatal(err)
		}
		stopped = false
	}
	t.Cleanup(func() {
		if stopped {
			start()
		}
	})
	sameDevice(t, r, func(pod corev1.Pod) {
		if err := suite.Tailnet.StopControl(); err != nil {
			t.Fatal(err)
		}
		stopped = true
		for _, c := range callers {
			c.CheckIdentity(t)
		}
		if err := suite.Kube.CoreV1().Pods(r.Namespace).Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		r.WaitReadyz(t, "[-]tailnet failed: ")
		start()
	})
}

// TestAPIServerRestarts takes the API server away: callers learn why nothing works, and
// the operator goes on when it is back, in the same process.
func TestAPIServerRestarts(t *testing.T) {
	r := installed(t, "apiserver-restarts")
	callers, pod := callersOf(t, r, auth), r.WaitReady(t, "")
	// kubectl learns what resources there are. Before it knows that, it has words of its own.
	if _, err := callers[0].Run(t.Context(), framework.Options{}, "get", "pods"); err != nil {
		t.Fatal(err)
	}
	control, err := suite.ControlPlane()
	if err != nil {
		t.Fatal(err)
	}
	const manifest, away = "/etc/kubernetes/manifests/kube-apiserver.yaml", "/etc/kubernetes/kube-apiserver.yaml"
	if err := control.Command("mv", manifest, away).Run(); err != nil {
		t.Fatal(err)
	}
	back := func() error {
		return control.Command("bash", "-c", "test ! -f "+away+" || mv "+away+" "+manifest).Run()
	}
	defer func() {
		if err := back(); err != nil {
			t.Error(err)
		}
	}()
	var said string
	defer func() {
		if t.Failed() {
			t.Logf("kubectl said last: %s", said)
		}
	}()
	framework.Wait(t, "kubectl to say that the API server is away", func(ctx context.Context) bool {
		said, _ = callers[0].Run(ctx, framework.Options{}, "get", "pods")
		return strings.Contains(said, "cannot be reached from the proxy")
	})
	framework.Wait(t, "/readyz to say that the API server is away", func(ctx context.Context) bool {
		return strings.Contains(r.ReadyzOf(ctx, &pod), "[-]apiserver failed: ")
	})
	if err := back(); err != nil {
		t.Fatal(err)
	}
	framework.Wait(t, "calls to work again", func(ctx context.Context) bool {
		_, err := callers[0].Run(ctx, framework.Options{}, "get", "pods")
		return err == nil
	})
	after := r.WaitReady(t, "")
	if after.Name != pod.Name || after.Status.ContainerStatuses[0].RestartCount != pod.Status.ContainerStatuses[0].RestartCount {
		t.Errorf("the pod is %s with %d restarts, before it was %s with %d", after.Name, after.Status.ContainerStatuses[0].RestartCount,
			pod.Name, pod.Status.ContainerStatuses[0].RestartCount)
	}
}

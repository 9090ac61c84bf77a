// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tailhelm/tailhelm/test/e2e/framework"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// permutation is a way to install the chart.
type permutation struct {
	// example is the name of a values file, or empty.
	example string
	// labels are of the namespace.
	labels map[string]string
	// prepare makes what the installation expects to be there, and its credentials.
	prepare func(t *testing.T, r *framework.Release)
	// callers configures the clients; [framework.Suite.Callers] by default.
	callers func(ctx context.Context, device string) ([]*framework.Caller, error)
	// check looks at what else the installation promises. Optional.
	check func(t *testing.T, callers []*framework.Caller)
	// noACME: the proxy orders no certificate.
	noACME bool
	// stays: the device is still there after uninstallation, because nothing has access to
	// the Tailscale API.
	stays bool
}

func oauth(t *testing.T, r *framework.Release) {
	t.Helper()
	r.UseOAuth(framework.OperatorTag)
}

func tokens(ctx context.Context, device string) ([]*framework.Caller, error) {
	return suite.TokenCallers(ctx, device)
}

// permutations are the documented ways to install: the files of values-examples and the
// three commands of the documentation.
func permutations() map[string]permutation {
	return map[string]permutation{
		"access-bindings":   {example: "access-bindings", prepare: accessBindings, check: boundAccess},
		"air-gapped":        {example: "air-gapped", prepare: airGapped, callers: ownAuthority, noACME: true, stays: true},
		"auth":              {example: "auth", prepare: oauth},
		"csi-secret-volume": {example: "csi-secret-volume", prepare: csiSecretVolume},
		"custom-login-server": {
			example: "custom-login-server", noACME: true, stays: true,
			prepare: func(t *testing.T, r *framework.Release) { t.Helper(); r.UseAuthKey(t) },
			callers: func(ctx context.Context, device string) ([]*framework.Caller, error) {
				return suite.Callers(ctx, device, "--http")
			},
		},
		"documented-auth":   {prepare: withValue("apiServerProxyConfig.mode", "true")},
		"documented-noauth": {prepare: withValue("apiServerProxyConfig.mode", "noauth"), callers: tokens},
		"existing-secret":   {example: "existing-secret", prepare: existingSecret},
		"monitoring":        {example: "monitoring", prepare: monitoring},
		"noauth":            {example: "noauth", prepare: oauth, callers: tokens},
		"openshift":         {example: "openshift", prepare: oauth},
		"own-certificate":   {example: "own-certificate", prepare: ownCertificate, callers: ownAuthority, noACME: true},
		"restricted-namespace": {
			example: "restricted-namespace", prepare: oauth,
			labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
		},
		// The rights of the controllers are not there to hide that a right of the proxy is missing.
		"without-controllers": {prepare: withoutControllers},
		"second-release":      {example: "second-release", prepare: secondRelease, callers: tokens},
		"workload-identity":   {example: "workload-identity", prepare: workloadIdentity},
	}
}

// TestEveryExample keeps an example from being forgotten here.
func TestEveryExample(t *testing.T) {
	used := map[string]bool{recorderExample: true}
	for _, p := range permutations() {
		used[p.example] = true
	}
	for example := range groups {
		used[example] = true
	}
	paths, err := filepath.Glob(framework.Root + "/values-examples/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		if !used[name] {
			t.Errorf("no test installs the example %s", name)
		}
	}
}

// TestInstall installs each permutation, uses it, upgrades it, and uninstalls it.
func TestInstall(t *testing.T) {
	t.Parallel()
	for name, p := range permutations() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := suite.NewRelease(t, name, p.labels)
			if p.example != "" {
				r.Files = []string{p.example}
			}
			p.prepare(t, r)
			r.Upgrade(t)
			// The Service for replicas finds none.
			checkSelectors(t, r, "app.kubernetes.io/component!=proxygroups")
			use(t, r, p)
			upgrade(t, r, p)
			r.Uninstall(t)
			checkGone(t, r, p.stays)
			checkState(t, r, p.stays)
		})
	}
}

// use has all callers use a release.
func use(t *testing.T, r *framework.Release, p permutation) {
	t.Helper()
	callers := callersOf(t, r, p)
	framework.Use(t, r.Namespace, callers)
	if p.check != nil {
		p.check(t, callers)
	}
}

func callersOf(t *testing.T, r *framework.Release, p permutation) []*framework.Caller {
	t.Helper()
	return callersAt(t, r.Device(t).FQDN, p)
}

// callersAt configures the clients for a name on the tailnet, and waits until they reach
// it.
func callersAt(t *testing.T, name string, p permutation) []*framework.Caller {
	t.Helper()
	configure := p.callers
	if configure == nil {
		configure = func(ctx context.Context, device string) ([]*framework.Caller, error) {
			return suite.Callers(ctx, device)
		}
	}
	callers, err := configure(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range callers {
		c.WaitReachable(t)
	}
	return callers
}

// upgrade changes a value that restarts the pod, and checks that it comes back as the
// same device, with the same name and certificate.
func upgrade(t *testing.T, r *framework.Release, p permutation) {
	t.Helper()
	before, orders := r.Device(t), suite.Tailnet.CertificateOrders(r.Device(t).FQDN)
	if want := 1; !p.noACME && orders != want || p.noACME && orders != 0 {
		t.Errorf("%d certificates were ordered for %s", orders, before.FQDN)
	}
	r.Values["operatorConfig.podAnnotations.upgraded"] = "yes"
	r.Upgrade(t)
	after := r.Device(t)
	if after.ID != before.ID || after.FQDN != before.FQDN {
		t.Errorf("after an upgrade the device is %s (%s), before it was %s (%s)", after.FQDN, after.ID, before.FQDN, before.ID)
	}
	if n := suite.Tailnet.CertificateOrders(after.FQDN); n != orders {
		t.Errorf("the upgrade ordered %d certificates", n-orders)
	}
	for _, c := range callersOf(t, r, p) {
		c.CheckIdentity(t)
	}
}

// checkGone checks that helm uninstall has left nothing that works on.
func checkGone(t *testing.T, r *framework.Release, stays bool) {
	t.Helper()
	framework.Wait(t, "the device to be offline", func(context.Context) bool {
		return !slices.ContainsFunc(r.Devices(), func(d tailnet.DeviceStatus) bool { return d.Online })
	})
	if devices := r.Devices(); len(devices) > 0 && !stays {
		t.Errorf("after helm uninstall the tailnet still has %+v", devices)
	}
	// helm does not wait for pods, which drain.
	framework.Wait(t, "the pods to end", func(ctx context.Context) bool { return len(r.Pods(ctx, t)) == 0 })
	for _, name := range r.ClusterObjects(t) {
		t.Errorf("after helm uninstall there still is %s", name)
	}
}

// checkState checks that a device which stays keeps its state, and that no other does.
func checkState(t *testing.T, r *framework.Release, stays bool) {
	t.Helper()
	_, err := suite.Kube.CoreV1().Secrets(r.Namespace).Get(t.Context(), r.Deployment, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	if there := err == nil; there != stays {
		t.Errorf("after helm uninstall the device's state is there: %t, want %t", there, stays)
	}
}

// checkSelectors checks that what selects pods selects some. labels select what is checked.
func checkSelectors(t *testing.T, r *framework.Release, labels string) {
	t.Helper()
	selected := metav1.ListOptions{LabelSelector: labels}
	budgets, err := suite.Kube.PolicyV1().PodDisruptionBudgets(r.Namespace).List(t.Context(), selected)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range budgets.Items {
		framework.Wait(t, "PodDisruptionBudget "+b.Name+" to find pods", func(ctx context.Context) bool {
			now, err := suite.Kube.PolicyV1().PodDisruptionBudgets(r.Namespace).Get(ctx, b.Name, metav1.GetOptions{})
			return err == nil && now.Status.ExpectedPods > 0
		})
	}
	services, err := suite.Kube.CoreV1().Services(r.Namespace).List(t.Context(), selected)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range services.Items {
		framework.Wait(t, "Service "+s.Name+" to find pods", func(ctx context.Context) bool {
			slices, err := suite.Kube.DiscoveryV1().EndpointSlices(r.Namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + s.Name})
			return err == nil && len(slices.Items) > 0 && len(slices.Items[0].Endpoints) > 0 && len(slices.Items[0].Ports) > 0
		})
	}
	policies, err := suite.Kube.NetworkingV1().NetworkPolicies(r.Namespace).List(t.Context(), selected)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range policies.Items {
		selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err != nil {
			t.Fatal(err)
		}
		pods, err := suite.Kube.CoreV1().Pods(r.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: selector.String()})
		if err != nil || len(pods.Items) == 0 {
			t.Errorf("NetworkPolicy %s finds no pods: %v", p.Name, err)
		}
	}
}

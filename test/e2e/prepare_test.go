// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tailhelm/tailhelm/test/e2e/framework"
)

// withValue installs with one more --set-string, as the documented commands do.
func withValue(name, value string) func(*testing.T, *framework.Release) {
	return func(t *testing.T, r *framework.Release) {
		t.Helper()
		oauth(t, r)
		r.Values[name] = value
	}
}

// withoutControllers installs the proxy alone.
func withoutControllers(t *testing.T, r *framework.Release) {
	t.Helper()
	withValue("apiServerProxyConfig.mode", "true")(t, r)
	r.Switches["controllers.enabled"] = "false"
}

// accessBindings makes the namespaces that the example binds roles in.
func accessBindings(t *testing.T, r *framework.Release) {
	t.Helper()
	oauth(t, r)
	for _, name := range []string{"staging", "production"} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := suite.Kube.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			// The test's own context has ended.
			if err := suite.Kube.CoreV1().Namespaces().Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// boundAccess checks the roles that the example binds.
func boundAccess(t *testing.T, callers []*framework.Caller) {
	t.Helper()
	alice, bob, machine := callers[0], callers[1], callers[2]
	for _, question := range []struct {
		caller *framework.Caller
		args   []string
		want   bool
	}{
		{alice, []string{"delete", "namespaces"}, true},
		{machine, []string{"create", "deployments.apps", "--namespace=staging"}, true},
		{machine, []string{"create", "deployments.apps", "--namespace=production"}, true},
		{machine, []string{"create", "deployments.apps", "--namespace=default"}, false},
		{bob, []string{"get", "pods", "--namespace=staging"}, false},
	} {
		// kubectl ends with status 1 for "no".
		out, _ := question.caller.Run(t.Context(), framework.Options{}, append([]string{"auth", "can-i"}, question.args...)...)
		answers := strings.Fields(out)
		if len(answers) == 0 || answers[len(answers)-1] != map[bool]string{true: "yes", false: "no"}[question.want] {
			t.Errorf("may %s %q: %s, want %t", question.caller.Name, question.args, out, question.want)
		}
	}
}

// existingSecret makes the Secret of the example, as something else would.
func existingSecret(t *testing.T, r *framework.Release) {
	t.Helper()
	id, secret := suite.Tailnet.OAuthClient(framework.OperatorTag)
	r.Secret(t, "tailnet-credentials", map[string]string{"id": id, "secret": secret})
}

// csiSecretVolume installs the driver of the example, which has the OAuth client.
func csiSecretVolume(t *testing.T, _ *framework.Release) {
	t.Helper()
	id, secret := suite.Tailnet.OAuthClient(framework.OperatorTag)
	suite.InstallSecretsStore(t, "secrets-store.csi.k8s.io", "tailnet-oauth", map[string]string{"client_id": id, "client_secret": secret})
}

// monitoring installs the custom resources of the Prometheus operator.
func monitoring(t *testing.T, r *framework.Release) {
	t.Helper()
	oauth(t, r)
	if err := suite.InstallPrometheusCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// secondRelease makes the device one of another tag, which has an OAuth client of its own.
func secondRelease(t *testing.T, r *framework.Release) {
	t.Helper()
	r.UseOAuth("tag:k8s-tools")
	r.Deployment = "tailscale-operator-tools"
}

// workloadIdentity lets the ServiceAccount of the operator act for the tailnet.
func workloadIdentity(t *testing.T, r *framework.Release) {
	t.Helper()
	id, audience, err := suite.FederatedClient(t.Context(), r.Namespace, "operator")
	if err != nil {
		t.Fatal(err)
	}
	r.Values["oauth.clientId"], r.Values["oauth.audience"] = id, audience
}

// airGapped gives the nodes the image under the name of the mirror, as if they had it
// from there, and makes the Secrets that the example names.
func airGapped(t *testing.T, r *framework.Release) {
	t.Helper()
	r.UseAuthKey(t)
	makeCertificate(t, r)
	digest, err := suite.Mirror(t.Context(), "registry.internal.example.com:5000/mirror")
	if err != nil {
		t.Fatal(err)
	}
	r.Values["operatorConfig.image.digest"] = digest
}

// ownCertificate makes the certificate of an authority that the tailnet does not know.
func ownCertificate(t *testing.T, r *framework.Release) {
	t.Helper()
	oauth(t, r)
	makeCertificate(t, r)
}

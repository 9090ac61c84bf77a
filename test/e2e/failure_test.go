// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/tailhelm/tailhelm/test/e2e/framework"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// TestFailures installs into a tailnet that does not let the operator get ready. The
// operator says why, where people look, and gets ready by itself when the cause is gone.
func TestFailures(t *testing.T) {
	for name, failure := range map[string]struct {
		// fail breaks something and returns what repairs it.
		fail func(t *testing.T, r *framework.Release) (repair func())
		// says is what /readyz and the log have.
		says []string
	}{
		"wrong-oauth-secret": {wrongOAuthSecret, []string{"[-]tailnet failed: ", "401"}},
		"wrong-tag":          {wrongTag, []string{"[-]tailnet failed: ", "requested tags [tag:k8s-operator] are invalid or not permitted"}},
		"https-off":          {httpsOff, []string{"[-]certificate failed: ", "enable HTTPS"}},
		"acme-failing":       {acmeFailing, []string{"[-]certificate failed: ", "the test refuses"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := suite.NewRelease(t, name, nil)
			r.Files = []string{auth.example}
			oauth(t, r)
			repair := failure.fail(t, r)
			r.UpgradeInVain(t)
			r.WaitReadyz(t, failure.says...)
			if log := r.Log(t.Context(), t); !strings.Contains(log, failure.says[1]) {
				t.Errorf("the log does not say %q:\n%s", failure.says[1], log)
			}
			for _, pod := range r.Pods(t.Context(), t) {
				if n := pod.Status.ContainerStatuses[0].RestartCount; n > 0 {
					t.Errorf("the container was restarted %d times", n)
				}
			}
			repair()
			r.WaitReady(t, "")
			checkIdentities(t, r, auth)
		})
	}
}

// wrongOAuthSecret is a typing error on the command line; the repair is the right command.
func wrongOAuthSecret(t *testing.T, r *framework.Release) func() {
	t.Helper()
	secret := r.Values["oauth.clientSecret"]
	r.Values["oauth.clientSecret"] = "tskey-client-wrong"
	return func() {
		r.Values["oauth.clientSecret"] = secret
		r.Upgrade(t)
	}
}

// wrongTag is an OAuth client that does not own the operator's tag.
func wrongTag(t *testing.T, r *framework.Release) func() {
	t.Helper()
	r.UseOAuth("tag:other")
	set := func(owners map[string][]string) {
		if err := suite.Tailnet.SetTagOwners(owners); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { set(framework.TagOwners()) })
	return func() {
		owners := framework.TagOwners()
		owners[framework.OperatorTag] = []string{"tag:other"}
		set(owners)
	}
}

// httpsOff is a tailnet without certificates.
func httpsOff(t *testing.T, _ *framework.Release) func() {
	t.Helper()
	set := func(on bool) {
		if err := suite.Tailnet.SetHTTPS(on); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { set(true) })
	set(false)
	return func() { set(true) }
}

// acmeFailing is a certificate authority that refuses orders.
func acmeFailing(t *testing.T, _ *framework.Release) func() {
	t.Helper()
	restore := suite.Tailnet.Fail(tailnet.PathACMENewOrder, tailnet.Fault{
		Status: http.StatusForbidden, Problem: "rejectedIdentifier", Message: "the test refuses",
	})
	t.Cleanup(restore)
	return restore
}

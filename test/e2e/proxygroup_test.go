// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"testing"

	"github.com/tailhelm/tailhelm/test/e2e/framework"
)

// groupTags are the tags of replicas, which the operator's OAuth client gives them.
var groupTags = []string{"tag:k8s", "tag:k8s-tools"}

// groups are the examples with ProxyGroups, and who calls each group.
var groups = map[string]map[string]permutation{
	"ha-auth":           {"my-cluster": {}},
	"ha-noauth":         {"my-cluster": {callers: tokens}},
	"ha-and-in-process": {"my-cluster": {}, "my-cluster-tools": {callers: tokens}},
}

// TestProxyGroups installs each example with ProxyGroups, uses the names that the
// replicas serve together, and uninstalls it. The examples share their names, so that one
// follows the other.
func TestProxyGroups(t *testing.T) {
	owners := map[string][]string{}
	for _, tag := range groupTags {
		owners[tag] = []string{framework.OperatorTag}
	}
	if err := suite.Tailnet.SetTagOwners(owners); err != nil {
		t.Fatal(err)
	}
	for example, names := range groups {
		t.Run(example, func(t *testing.T) {
			r := suite.NewRelease(t, example, nil)
			r.Files = []string{example}
			oauth(t, r)
			r.Upgrade(t)
			for name, p := range names {
				out, err := suite.Kubectl(t.Context(), "wait", "proxygroup/"+name, "--for=condition=ProxyGroupReady=true", "--timeout=3m").CombinedOutput()
				if err != nil {
					t.Fatalf("kubectl wait: %v\n%s", err, out)
				}
				framework.Use(t, example+"-"+name, callersAt(t, name+"."+suite.Tailnet.Domain(), p))
			}
			r.Uninstall(t)
			framework.Wait(t, "every device of the groups to be gone", func(context.Context) bool {
				for _, d := range suite.Tailnet.Devices() {
					for _, tag := range d.Identity.Tags {
						if tag != framework.Machine {
							return false
						}
					}
				}
				return true
			})
		})
	}
}

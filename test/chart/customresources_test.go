// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"strings"
	"testing"

	"github.com/tailhelm/tailhelm/test/kubernetes"
)

// TestCustomResources installs ProxyGroups into a cluster that never heard of them.
func TestCustomResources(t *testing.T) {
	r := &rig{Cluster: kubernetes.New(t, kubernetes.Options{})}
	r.namespace(t, "first")
	r.namespace(t, "second")
	example := exampleFiles(t)["ha-auth"]

	out, err := r.upgrade(t.Context(), "plain", "first", "--values", example, "--set", "installCRDs=false,fullnameOverride=plain").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "or set installCRDs to true") {
		t.Errorf("an installation of ProxyGroups without their definitions: %v\n%s", err, out)
	}
	mustRun(t, r.upgrade(t.Context(), "plain", "first", "--set", "installCRDs=false,fullnameOverride=plain"))
	out, err = r.upgrade(t.Context(), "plain", "first", "--values", example, "--set", "installCRDs=false,fullnameOverride=plain").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "helm show crds <this chart> | kubectl apply --server-side --force-conflicts --filename -") {
		t.Errorf("an upgrade to ProxyGroups without their definitions: %v\n%s", err, out)
	}
	out, err = r.upgrade(t.Context(), "plain", "first", "--set", "recorders[0].name=recorder,installCRDs=false,fullnameOverride=plain,oauth.clientId=a,oauth.clientSecret=b").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "the cluster does not know Recorders") {
		t.Errorf("an upgrade to Recorders without their definition: %v\n%s", err, out)
	}
	mustRun(t, r.uninstall(t.Context(), "plain", "first"))

	// The first installation brings definitions and objects of them at once.
	mustRun(t, r.upgrade(t.Context(), "first", "first", "--values", example))
	if got := output(t, r.Kubectl(t.Context(), "get", "proxygroup", "my-cluster", "--output=jsonpath={.metadata.annotations.tailscale\\.com/operator}")); got != "first/operator" {
		t.Errorf("the ProxyGroup's operator is %q", got)
	}
	// What the API server would refuse half-way is refused before.
	out, err = r.upgrade(t.Context(), "first", "first", "--values", example, "--set", "proxyConfig.defaultTags=tag:other").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "give it in proxyGroups `tags: [\"tag:k8s\"]`, as they are") {
		t.Errorf("an upgrade to other tags of a ProxyGroup: %v\n%s", err, out)
	}
	testRecorderKept(t, r, example)
	// The operator adds the definition that an older release did not bring, and no other.
	mustRun(t, r.Kubectl(t.Context(), "delete", "crd", "recorders.tailscale.com"))
	add := func(name string) ([]byte, error) {
		return r.Kubectl(t.Context(), "apply", "--server-side", "--as=system:serviceaccount:first:operator", "--filename="+chart+"/charts/crds/crds/tailscale.com_"+name+".yaml").CombinedOutput()
	}
	if out, err := add("recorders"); err != nil {
		t.Errorf("the operator cannot add the definition of Recorders: %v\n%s", err, out)
	}
	if out, err := r.Kubectl(t.Context(), "create", "--as=system:serviceaccount:first:operator", "--dry-run=server", "--filename="+chart+"/charts/crds/crds/tailscale.com_proxygroups.yaml").CombinedOutput(); err == nil || !strings.Contains(string(out), "cannot create resource") {
		t.Errorf("the operator can create any definition: %v\n%s", err, out)
	}
	// The second finds them there, and takes nothing along when it goes.
	mustRun(t, r.upgrade(t.Context(), "second", "second"))
	mustRun(t, r.uninstall(t.Context(), "second", "second"))
	mustRun(t, r.Kubectl(t.Context(), "get", "proxygroup", "my-cluster"))
	mustRun(t, r.uninstall(t.Context(), "first", "first"))
	if left := r.left(t, "first"); len(left) > 0 {
		t.Errorf("left after helm uninstall: %v", left)
	}
	mustRun(t, r.Kubectl(t.Context(), "get", "crd", "proxygroups.tailscale.com", "proxyclasses.tailscale.com", "recorders.tailscale.com"))

	testShownDefinitions(t, r)
	testForeignDefinition(t, r)
}

// testRecorderKept upgrades to other tags and another volume of a Recorder, which the API server would refuse half-way.
func testRecorderKept(t *testing.T, r *rig, example string) {
	t.Helper()
	spec := func(tag, size string) []string {
		return []string{"--values", example, "--set-json", `recorders=[{"name":"kept","spec":{"tags":["` + tag + `"],"storage":{"persistentVolumeClaim":{"size":"` + size + `"}}}}]`}
	}
	for range 2 { // the second finds it as it was
		mustRun(t, r.upgrade(t.Context(), "first", "first", spec("tag:a", "10Gi")...))
	}
	out, err := r.upgrade(t.Context(), "first", "first", spec("tag:b", "20Gi")...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "give it in its spec `tags: [\"tag:a\"]`, as before") || !strings.Contains(string(out), `"kept" has other storage`) {
		t.Errorf("an upgrade to other tags and storage of a Recorder: %v\n%s", err, out)
	}
	mustRun(t, r.upgrade(t.Context(), "first", "first", "--values", example))
}

// testShownDefinitions runs what validate.yaml and the chart's README tell people to run: where there are no
// definitions, and over those of an older release, which helm or the operator has applied.
func testShownDefinitions(t *testing.T, r *rig) {
	t.Helper()
	names := []string{"proxygroups.tailscale.com", "proxyclasses.tailscale.com", "recorders.tailscale.com"}
	definitions := output(t, r.Helm(t.Context(), "show", "crds", chart))
	const annotation = "tailhelm.github.io/revision: "
	older := strings.ReplaceAll(definitions, annotation+`"`, annotation+`"older-`)
	for _, manager := range []string{"", "helm", "tailhelm"} {
		mustRun(t, r.Kubectl(t.Context(), append([]string{"delete", "crd"}, names...)...))
		if manager != "" {
			before := r.Kubectl(t.Context(), "apply", "--server-side", "--field-manager="+manager, "--filename", "-")
			before.Stdin = strings.NewReader(older)
			mustRun(t, before)
		}
		apply := r.Kubectl(t.Context(), "apply", "--server-side", "--force-conflicts", "--filename", "-")
		apply.Stdin = strings.NewReader(definitions)
		mustRun(t, apply)
		got := output(t, r.Kubectl(t.Context(), append([]string{"get", "--output=yaml", "crd"}, names...)...))
		if strings.Contains(got, "older-") || strings.Count(got, annotation) != len(names) {
			t.Errorf("definitions of manager %q were not replaced:\n%s", manager, got)
		}
	}
}

// testForeignDefinition installs a Recorder where its definition is another chart's, which knows no volumes.
func testForeignDefinition(t *testing.T, r *rig) {
	t.Helper()
	const name, volume = "recorders.tailscale.com", `recorders=[{"name":"kept","spec":{"storage":{"persistentVolumeClaim":{"size":"10Gi"}}}}]`
	install := func(args ...string) ([]byte, error) {
		return r.upgrade(t.Context(), "third", "first", append(args, "--set", "oauth.clientId=a,oauth.clientSecret=b")...).CombinedOutput()
	}
	mustRun(t, r.Kubectl(t.Context(), "annotate", "crd", name, "tailhelm.github.io/revision-"))
	refused := func(when string) {
		t.Helper()
		if out, err := install("--set-json", volume); err == nil || !strings.Contains(string(out), "the cluster's definition recorders.tailscale.com is that of another chart") {
			t.Errorf("%s: %v\n%s", when, err, out)
		}
	}
	refused("an installation over another chart's definition")
	if out, err := install(); err != nil {
		t.Errorf("an installation without recorders: %v\n%s", err, out)
	}
	refused("an upgrade to the first recorder")
	apply := r.Kubectl(t.Context(), "apply", "--server-side", "--force-conflicts", "--filename", "-")
	apply.Stdin = strings.NewReader(output(t, r.Helm(t.Context(), "show", "crds", chart)))
	mustRun(t, apply)
	if out, err := install("--set-json", volume); err != nil {
		t.Errorf("an upgrade over the definition that was asked for: %v\n%s", err, out)
	}
	// Whoever upgrades a release whose recorders are whole may have no right to read definitions.
	mustRun(t, r.Kubectl(t.Context(), "annotate", "crd", name, "tailhelm.github.io/revision-"))
	if out, err := install("--set-json", volume); err != nil {
		t.Errorf("an upgrade of a release that has recorders: %v\n%s", err, out)
	}
}

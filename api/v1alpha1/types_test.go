// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"slices"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
)

func TestDefaults(t *testing.T) {
	g := &v1alpha1.ProxyGroup{}
	g.Name = "g"
	if g.Replicas() != 2 || g.Mode() != v1alpha1.APIServerProxyModeAuth || g.Hostname() != "g" || g.HostnamePrefix() != "g" {
		t.Errorf("defaults are %d, %q, %q, %q", g.Replicas(), g.Mode(), g.Hostname(), g.HostnamePrefix())
	}
	text := group("g", `{type: kube-apiserver, replicas: 0, hostnamePrefix: h, kubeAPIServer: {mode: noauth, hostname: c}}`)
	if err := yaml.UnmarshalStrict([]byte(text), g); err != nil {
		t.Fatal(err)
	}
	if g.Replicas() != 0 || g.Mode() != v1alpha1.APIServerProxyModeNoAuth || g.Hostname() != "c" || g.HostnamePrefix() != "h" {
		t.Errorf("the spec's own are %d, %q, %q, %q", g.Replicas(), g.Mode(), g.Hostname(), g.HostnamePrefix())
	}
}

func TestWithoutEffect(t *testing.T) {
	const container = "spec.statefulSet.pod.tailscaleContainer."
	for spec, want := range map[string][]string{
		`{}`:                          nil,
		`{statefulSet: {labels: {}}}`: nil,
		`{statefulSet: {pod: {}}}`:    nil,
		`{metrics: {enable: true}}`:   nil,
		`{tailscale: {acceptRoutes: true}, useLetsEncryptStagingEnvironment: true}`:              nil,
		`{statefulSet: {pod: {tailscaleContainer: {debug: {enable: false}, env: [{name: A}]}}}}`: nil,
		officialClass: {"spec.statefulSet.pod.tailscaleInitContainer", container + "env[TS_PORT]", container + "debug.enable"},
	} {
		var s v1alpha1.ProxyClassSpec
		if err := yaml.UnmarshalStrict([]byte(spec), &s); err != nil {
			t.Fatal(err)
		}
		if got := v1alpha1.WithoutEffect(&s); !slices.Equal(got, want) {
			t.Errorf("%s: without effect are %q, want %q", spec, got, want)
		}
	}
}

func TestRecorder(t *testing.T) {
	r := &v1alpha1.Recorder{}
	r.Name = "r"
	if r.Replicas() != 1 || r.HostnamePrefix() != "r" || r.Durable() || v1alpha1.RecorderWithoutEffect(&r.Spec) != nil {
		t.Errorf("defaults are %d, %q, durable %t", r.Replicas(), r.HostnamePrefix(), r.Durable())
	}
	if err := yaml.UnmarshalStrict([]byte(recorder("r", ourRecorder)), r); err != nil {
		t.Fatal(err)
	}
	if !r.Durable() {
		t.Error("recordings on a volume are not durable")
	}
	if err := yaml.UnmarshalStrict([]byte(recorder("r", officialRecorder)), r); err != nil {
		t.Fatal(err)
	}
	if got, want := v1alpha1.RecorderWithoutEffect(&r.Spec), []string{"spec.enableUI", "spec.statefulSet.pod.container.env[POD_UID]"}; !slices.Equal(got, want) {
		t.Errorf("without effect are %q, want %q", got, want)
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/tailhelm/tailhelm/test/kubernetes"
)

// TestRendersOffline renders upgrades where no cluster can be asked what it knows, as GitOps does.
func TestRendersOffline(t *testing.T) {
	for name, args := range map[string][]string{
		"unknown": {},
		"given":   {"--api-versions", "tailscale.com/v1alpha1/ProxyGroup"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"release", chart, "--is-upgrade", "--values", exampleFiles(t)["ha-auth"]}, args...)
			rendered := template(t, args...)
			if !strings.Contains(rendered, "kind: ProxyGroup\n") {
				t.Error("there is no ProxyGroup")
			}
			if strings.Contains(rendered, "helm.sh/hook") || strings.Contains(rendered, "kind: Job\n") {
				t.Error("there is a hook, which kubectl would run at once")
			}
		})
	}
}

// everything turns on all that the chart can make.
var everything = []string{
	"--values", root + "/test/chart/testdata/alerts.values.yaml", "--set", "oauth.clientId=a,oauth.clientSecret=b,networkPolicy.enabled=true,podDisruptionBudget.enabled=true",
	"--set", "commonLabels.team=a,operatorConfig.podLabels.pod=b,metrics.service.labels.team=b,metrics.serviceMonitor.labels.team=b,metrics.prometheusRule.labels.team=b,metrics.dashboard.labels.team=b",
	"--set", "metrics.podMonitor.enabled=false,metrics.service.enabled=true,metrics.serviceMonitor.enabled=true,metrics.dashboard.enabled=true",
	askedCluster,
	"--set-json", `networkPolicy.metricsFrom=[{"podSelector":{}}]`,
	"--set-json", `access.bindings=[{"name":"1.0","clusterRole":"true","groups":["0x1"],"namespaces":["1e3"]}]`,
}

// TestOddNames renders everything with names that are legal and easily mistaken: numbers to YAML, and as
// long as they may be.
func TestOddNames(t *testing.T) {
	long := strings.Repeat("a", 63)
	for name, c := range map[string]struct{ release, namespace, set string }{
		"numbers":           {"123", "456", "fullnameOverride=1e3,commonLabels.a=1.0,operatorConfig.podLabels.b=0x1,operatorConfig.image.tag=1.0"},
		"words":             {"true", "null", "fullnameOverride=yes,operatorConfig.priorityClassName=off"},
		"long":              {long[:53], long, "fullnameOverride=" + long},
		"long by release":   {long[:53], long, "nameOverride=" + long},
		"dots":              {"a.b.c", "d", "nameOverride=e"},
		"another namespace": {"release", "first", "namespaceOverride=second"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{c.release, chart, "--namespace", c.namespace, "--set", c.set, "--set-string", "commonAnnotations.c=true"}, everything...)
			seen := map[string]bool{}
			for _, o := range objects(t, template(t, args...)) {
				checkNames(t, o)
				id := o.GetKind() + " " + o.GetNamespace() + "/" + o.GetName()
				if seen[id] {
					t.Errorf("%s is there twice", id)
				}
				seen[id] = true
			}
			if len(seen) < 30 {
				t.Errorf("there are only %d objects", len(seen))
			}
		})
	}
}

// objects reads what helm has rendered. A number or a truth where Kubernetes has a string is an error.
func objects(t *testing.T, rendered string) []*unstructured.Unstructured {
	t.Helper()
	var all []*unstructured.Unstructured
	for documents := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(rendered))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		o := &unstructured.Unstructured{}
		if err := yaml.UnmarshalStrict(document, &o.Object); err != nil { // strict: each key once
			t.Errorf("%v in\n%s", err, document)
		}
		if o.Object == nil {
			continue
		}
		checkTypes(t, o)
		all = append(all, o)
	}
}

// checkTypes decodes an object as its type, or looks at what all types have.
func checkTypes(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	text, err := o.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if scheme.Scheme.Recognizes(o.GroupVersionKind()) {
		_, _, err = scheme.Codecs.UniversalDeserializer().Decode(text, nil, nil)
	} else {
		err = json.Unmarshal(text, &metav1.PartialObjectMetadata{})
	}
	if err != nil {
		t.Errorf("%v in\n%s", err, text)
	}
}

// checkNames checks an object's name and labels, as Kubernetes would.
func checkNames(t *testing.T, o *unstructured.Unstructured) {
	t.Helper()
	problems := validation.IsDNS1123Subdomain(o.GetName())
	switch {
	case strings.HasPrefix(o.GetAPIVersion(), "rbac."):
		problems = nil // anything that a path may have
	case o.GetKind() == "Service", o.GetKind() == "Job":
		problems = validation.IsDNS1123Label(o.GetName())
	}
	for key, value := range o.GetLabels() {
		problems = append(append(problems, validation.IsQualifiedName(key)...), validation.IsValidLabelValue(value)...)
	}
	if len(problems) > 0 {
		t.Errorf("%s %q: %v", o.GetKind(), o.GetName(), problems)
	}
}

// TestLint has `helm lint` refuse what `helm template` refuses, with words that name the value.
func TestLint(t *testing.T) {
	helm, err := kubernetes.HelmPath(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ set, want string }{
		"combination": {"oauth.clientId=a", "oauth.clientId is set without oauth.clientSecret or oauth.audience"},
		"name":        {"oauth.clientID=a", "at '/oauth': additional properties 'clientID' not allowed"},
		"choice":      {"apiServerProxyConfig.mode=banana", "at '/apiServerProxyConfig/mode': value must be one of"},
		"null":        {"tls.source=null", "at '/tls': missing property 'source'"},
		"nothing":     {"oauth.clientId=a,oauth.clientSecret=b", ""},
	} {
		out, err := exec.CommandContext(t.Context(), helm, "lint", chart, "--kube-version", "1.36.3", "--set", c.set).CombinedOutput()
		refusals := strings.Join(regexp.MustCompile(`(?m)^\[ERROR\].*`).FindAllString(string(out), -1), "\n")
		if (err == nil) != (c.want == "") || !strings.Contains(refusals, c.want) {
			t.Errorf("%s: helm lint --set %s: %v\n%s", name, c.set, err, out)
		}
	}
}

// TestSchemaIsNotAll renders without the schema, as `--skip-schema-validation` does: users that are null would be
// everybody, so the templates refuse them, too.
func TestSchemaIsNotAll(t *testing.T) {
	helm, err := kubernetes.HelmPath(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), helm, "template", "release", chart, "--kube-version", "1.36.3", "--skip-schema-validation",
		"--set", "apiServerProxyConfig.mode=true,apiServerProxyConfig.impersonation.users=null").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "apiServerProxyConfig.impersonation.users") {
		t.Errorf("helm says %v: %s", err, out)
	}
}

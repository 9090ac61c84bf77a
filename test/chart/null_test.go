// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"slices"
	"strings"
	"testing"

	helmchart "helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
)

// open are values whose parts are names of the user's own or Kubernetes' fields, which may be left out.
var open = []string{
	"operatorConfig.nodeSelector", "operatorConfig.podSecurityContext", "operatorConfig.securityContext",
	"operatorConfig.resources", "workloads.resources",
	"operatorConfig.startupProbe", "operatorConfig.livenessProbe", "operatorConfig.readinessProbe",
	"workloads.nodeSelector", "workloads.podSecurityContext", "workloads.securityContext",
	"workloads.startupProbe", "workloads.livenessProbe", "workloads.readinessProbe",
	"metrics.dashboard.labels",
}

// TestNullIsRefused gives null for each value. Helm then forgets the default, and without a
// refusal the templates would render what nobody asked for.
func TestNullIsRefused(t *testing.T) {
	c, err := loader.LoadDir(chart)
	if err != nil {
		t.Fatal(err)
	}
	var walk func(above []string, values map[string]any)
	walk = func(above []string, values map[string]any) {
		isOpen := slices.Contains(open, strings.Join(above, "."))
		for name, value := range values {
			path := append(slices.Clone(above), name)
			err := accepts(c, without(path))
			want := "at '/" + strings.Join(above, "/") + "': missing property '" + name + "'"
			if len(above) == 0 {
				want = "at '': missing property '" + name + "'"
			}
			if isOpen || value == nil {
				if err != nil {
					t.Errorf("%s is refused when it is null: %v", path, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s is null: %v, want an error that says %q", path, err, want)
			}
			if below, ok := value.(map[string]any); ok && !isOpen {
				walk(path, below)
			}
		}
	}
	walk(nil, c.Values)
}

// without returns values that say null at a path.
func without(path []string) map[string]any {
	if len(path) == 1 {
		return map[string]any{path[0]: nil}
	}
	return map[string]any{path[0]: without(path[1:])}
}

// accepts reports why the schema refuses values.
func accepts(c *helmchart.Chart, values map[string]any) error {
	_, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: "release", Namespace: "namespace"}, nil)
	return err
}

// TestAsDependency puts the chart into another one: defaults are the chart's there, too, and
// unknown names are refused.
func TestAsDependency(t *testing.T) {
	c, err := loader.LoadDir(chart)
	if err != nil {
		t.Fatal(err)
	}
	parent := &helmchart.Chart{Metadata: &helmchart.Metadata{APIVersion: "v2", Name: "platform", Version: "1.0.0"}}
	parent.AddDependency(c)
	for name, test := range map[string]struct {
		values map[string]any
		want   string
	}{
		"nothing": {map[string]any{}, ""},
		"some":    {map[string]any{"global": map[string]any{"a": "b"}, "tailscale-operator": map[string]any{"enabled": true, "loginServer": "https://control.example.com"}}, ""},
		"unknown": {map[string]any{"tailscale-operator": map[string]any{"logInServer": "a"}}, "additional properties 'logInServer' not allowed"},
	} {
		err := accepts(parent, test.values)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

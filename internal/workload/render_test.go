// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// folder writes files of a chart, by their names in a mounted ConfigMap.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	files["Chart.yaml"] = "apiVersion: v2\nname: workloads\nversion: 0.0.0\n"
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A kubelet's own, beside the files.
	if err := os.MkdirAll(filepath.Join(dir, "..2026"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "..2026", "templates__x.yaml"), []byte("{{ fail `read twice` }}"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestRender(t *testing.T) {
	dir := folder(t, map[string]string{
		"values.yaml":              "name: chart\ndefaults: {replicas: 3}\n",
		"templates___helpers.tpl":  `{{ define "name" }}{{ .Values.name }}-{{ .Release.Name }}{{ end }}`,
		"templates__account.yaml":  "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: {{ include \"name\" . }}}\n---\n# nothing\n---\napiVersion: v1\nkind: Service\nmetadata: {name: b, namespace: {{ .Release.Namespace }}}\n",
		"templates__nothing.yaml":  "{{ if .Values.no }}x{{ end }}",
		"templates__replicas.yaml": "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: c}\nspec: {replicas: {{ .Values.defaults.replicas }}}\n",
	})
	objects, err := Render(dir, Release{Name: "release", Namespace: "ns"}, map[string]any{"name": "given"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range objects {
		got = append(got, o.GetKind()+" "+o.GetNamespace()+"/"+o.GetName())
	}
	if want := "ServiceAccount ns/given-release, Service ns/b, StatefulSet ns/c"; strings.Join(got, ", ") != want {
		t.Errorf("rendered %s, want %s", strings.Join(got, ", "), want)
	}
}

// What the operator must not make is refused, with the name of the template.
func TestRenderRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ template, want string }{
		"another namespace":  {"apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: kube-system}", "is in namespace kube-system"},
		"a Secret":           {"apiVersion: v1\nkind: Secret\nmetadata: {name: a}", "v1 Secret is of a kind that the operator does not make"},
		"a ClusterRole":      {"apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: a}", "ClusterRole is of a kind"},
		"no name":            {"apiVersion: v1\nkind: Service", "lacks apiVersion, kind or metadata.name"},
		"no YAML":            {"a: b: c", "mapping values"},
		"a template's error": {`{{ fail "give a name" }}`, "give a name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Render(folder(t, map[string]string{"templates__bad.yaml": tc.template}), Release{Name: "r", Namespace: "ns"}, nil)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "bad.yaml") {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
	if _, err := Render("/nowhere", Release{}, nil); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("error %v", err)
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// manifest is a ConfigMap in YAML.
func manifest(name, value string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {key: %q}\n", name, value)
}

// writeManifest writes a manifest to a file, as people have them.
func writeManifest(t *testing.T, name, value string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name+".yaml")
	noError(t, os.WriteFile(path, []byte(manifest(name, value)), 0o600))
	return path
}

// newReader makes a ClusterRole that lets ConfigMaps be read.
func newReader(t *testing.T) (name string) {
	t.Helper()
	name = unique("reader")
	roles := shared.cluster.Client().RbacV1().ClusterRoles()
	_, err := roles.Create(within(t, patience), &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get", "list", "watch"}}},
	}, metav1.CreateOptions{})
	noError(t, err)
	return name
}

// TestKubectl is a day of kubectl: each command says what it did, a watch that is
// open all along sees it, and the object is what the command made of it.
func TestKubectl(t *testing.T) {
	t.Parallel()
	c := newUser(t, shared.proxy)
	ns := newNamespace(t, user(c.user))
	direct := shared.cluster.Client().CoreV1().ConfigMaps(ns)
	watch := c.start(protocol{}, "get", "configmaps", "-n", ns, "-w", "--output-watch-events", "--field-selector=metadata.name!=kube-root-ca.crt")
	value := func(m *corev1.ConfigMap) string { return m.Data["key"] }

	for _, step := range []struct {
		args  []string
		stdin string
		says  string
		event string
		of    func(*corev1.ConfigMap) string // what the command changed
		want  string
	}{
		{args: []string{"create", "configmap", "a", "--from-literal=key=created"}, says: "configmap/a created", event: `ADDED\s+a\s`, of: value, want: "created"},
		{args: []string{"apply", "-f", writeManifest(t, "b", "one")}, says: "configmap/b created", event: `ADDED\s+b\s`, of: value, want: "one"},
		{args: []string{"apply", "-f", "-"}, stdin: manifest("b", "two"), says: "configmap/b configured", event: `MODIFIED\s+b\s`, of: value, want: "two"},
		{args: []string{"apply", "--server-side", "-f", writeManifest(t, "c", "one")}, says: "configmap/c serverside-applied", event: `ADDED\s+c\s`, of: value, want: "one"},
		{args: []string{"apply", "--server-side", "-f", "-"}, stdin: manifest("c", "two"), says: "configmap/c serverside-applied", event: `MODIFIED\s+c\s`, of: value, want: "two"},
		{args: []string{"patch", "configmap", "a", "-p", `{"data":{"key":"patched"}}`}, says: "configmap/a patched", event: `MODIFIED\s+a\s`, of: value, want: "patched"},
		{args: []string{"patch", "configmap", "a", "--type=json", "-p", `[{"op":"replace","path":"/data/key","value":"json"}]`}, says: "configmap/a patched", event: `MODIFIED\s+a\s`, of: value, want: "json"},
		{args: []string{"label", "configmap", "a", "team=blue"}, says: "configmap/a labeled", event: `MODIFIED\s+a\s`, of: func(m *corev1.ConfigMap) string { return m.Labels["team"] }, want: "blue"},
		{args: []string{"get", "configmaps", "-l", "team=blue", "-o", "name"}, says: "configmap/a\n"},
		{args: []string{"get", "configmap", "c", "-o", "jsonpath={.data.key}"}, says: "two"},
		{args: []string{"get", "configmaps"}, says: "NAME"}, // a table of the API server
		{args: []string{"delete", "configmap", "a"}, says: `configmap "a" deleted`, event: `DELETED\s+a\s`},
		{args: []string{"delete", "configmaps", "b", "c"}, says: `configmap "c" deleted`, event: `DELETED\s+c\s`},
	} {
		out, errs, err := c.kubectlWith(step.stdin, append(step.args, "-n", ns)...)
		if err != nil || !strings.Contains(out, step.says) {
			t.Fatalf("kubectl %q: %v, want %q\n%s%s", step.args, err, step.says, out, errs)
		}
		if step.event == "" {
			continue
		}
		watch.expect(step.event)
		if step.of == nil {
			continue
		}
		_, name, _ := strings.Cut(strings.Fields(step.says)[0], "/")
		if got := step.of(must[*corev1.ConfigMap](t)(direct.Get(within(t, patience), name, metav1.GetOptions{}))); got != step.want {
			t.Errorf("after kubectl %q it is %q, want %q", step.args, got, step.want)
		}
	}
	if left := must[*corev1.ConfigMapList](t)(direct.List(within(t, patience), metav1.ListOptions{})); len(left.Items) != 1 {
		t.Errorf("%d ConfigMaps are left, want only that of Kubernetes", len(left.Items))
	}
	if _, errs, err := c.kubectl("get", "configmap", "a", "-n", ns); err == nil || !strings.Contains(errs, `(NotFound): configmaps "a" not found`) {
		t.Errorf("get of what was deleted: %v\n%s", err, errs)
	}
}

// TestKubectlForbidden: what RBAC does not allow is refused in the API server's own
// words, which name the caller, and leaves no trace.
func TestKubectlForbidden(t *testing.T) {
	t.Parallel()
	c := newUser(t, shared.proxy)
	ns := newNamespace(t)
	bind(t, ns, newReader(t), user(c.user))
	direct := shared.cluster.Client().CoreV1().ConfigMaps(ns)
	before := must[*corev1.ConfigMap](t)(direct.Create(within(t, patience), configMap("a", "key", "kept"), metav1.CreateOptions{}))

	for _, tc := range []struct {
		args  []string
		stdin string
		verb  string
		what  string
	}{
		{args: []string{"create", "configmap", "mine"}, verb: "create", what: "configmaps"},
		{args: []string{"apply", "-f", "-"}, stdin: manifest("mine", "x"), verb: "create", what: "configmaps"},
		{args: []string{"apply", "-f", "-"}, stdin: manifest("a", "x"), verb: "patch", what: "configmaps"},
		{args: []string{"apply", "--server-side", "--force-conflicts", "-f", "-"}, stdin: manifest("a", "x"), verb: "patch", what: "configmaps"},
		{args: []string{"patch", "configmap", "a", "-p", `{"data":{"key":"x"}}`}, verb: "patch", what: "configmaps"},
		{args: []string{"label", "configmap", "a", "team=blue"}, verb: "patch", what: "configmaps"},
		{args: []string{"delete", "configmap", "a"}, verb: "delete", what: "configmaps"},
		{args: []string{"delete", "configmaps", "--all"}, verb: "delete", what: "configmaps"},
		{args: []string{"get", "secrets"}, verb: "list", what: "secrets"},
		{args: []string{"get", "secrets", "-w"}, verb: "list", what: "secrets"},
		{args: []string{"get", "secret", "s"}, verb: "get", what: "secrets"},
	} {
		out, errs, err := c.kubectlWith(tc.stdin, append(tc.args, "-n", ns)...)
		want := fmt.Sprintf("User %q cannot %s resource %q in API group \"\" in the namespace %q", c.user, tc.verb, tc.what, ns)
		if text := out + errs; err == nil || !strings.Contains(text, "orbidden") || !strings.Contains(text, want) {
			t.Errorf("kubectl %q: %v, want %s\n%s", tc.args, err, want, text)
		}
	}
	c.mustKubectl("get", "configmap", "a", "-n", ns) // what it may do, it does
	after := must[*corev1.ConfigMap](t)(direct.Get(within(t, patience), "a", metav1.GetOptions{}))
	if after.ResourceVersion != before.ResourceVersion {
		t.Errorf("it was changed: %+v", after)
	}
	if list := must[*corev1.ConfigMapList](t)(direct.List(within(t, patience), metav1.ListOptions{FieldSelector: "metadata.name=mine"})); len(list.Items) > 0 {
		t.Error("a ConfigMap was made")
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/tailhelm/tailhelm/test/kubernetes"
)

// update writes golden files and manifests instead of comparing with them.
var update = flag.Bool("update", false, "write testdata and manifests anew")

// Folders of the repository.
const (
	root     = "../.."
	chart    = root + "/charts/tailscale-operator"
	examples = root + "/values-examples"
)

// exampleFiles returns the paths of the values files by their names.
func exampleFiles(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob(examples + "/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	files := map[string]string{}
	for _, path := range paths {
		files[strings.TrimSuffix(filepath.Base(path), ".yaml")] = path
	}
	return files
}

// askedCluster is an argument of helm template: a kind among the API versions, by which the chart
// sees that a cluster was asked, as helm install does.
const askedCluster = "--api-versions=apps/v1/Deployment"

// template renders the chart without a cluster.
func template(t *testing.T, args ...string) string {
	t.Helper()
	helm, err := kubernetes.HelmPath(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"template", "--kube-version", "1.36.3"}, args...)
	return output(t, exec.CommandContext(t.Context(), helm, args...))
}

// output runs a command and returns what it writes to its standard output.
func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", cmd, err, out, stderr(err))
	}
	return string(out)
}

// stderr returns what a command that failed wrote to its standard error.
func stderr(err error) []byte {
	if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // as exec.Cmd.Output returns it
		return exit.Stderr
	}
	return nil
}

// golden compares got with a file, or writes the file.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test ./test/chart -update writes it)", err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s is not what the chart renders (go test ./test/chart -update writes it; -file +chart):\n%s", path, diff)
	}
}

// TestGolden renders each example as it is recorded, so that a change of the chart shows
// what it changes for whom.
func TestGolden(t *testing.T) {
	for name, path := range exampleFiles(t) {
		t.Run(name, func(t *testing.T) {
			golden(t, filepath.Join("testdata", "golden", name+".yaml"),
				template(t, "tailscale-operator", chart, "--namespace", "tailscale", "--values", path, askedCluster))
		})
	}
	// A record of an example that is gone would never be looked at again.
	paths, err := filepath.Glob("testdata/golden/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if _, ok := exampleFiles(t)[strings.TrimSuffix(filepath.Base(path), ".yaml")]; !ok {
			t.Errorf("%s belongs to no example: remove it", path)
		}
	}
}

const manifestHeader = "# Generated from charts/tailscale-operator by go test ./test/chart -update. Do not edit.\n"

// operatorHeader is what the release's administrator would have made before helm did.
const operatorHeader = `# No image has been published yet: README.md says how to build and push one. Put its name in the place of ghcr.io/tailhelm/tailhelm below.
# Set client_id and client_secret below, and APISERVER_PROXY of the Deployment to "true" or
# "noauth". For "true", and for ProxyGroups of mode auth, apply authproxy-rbac.yaml, too.
# Before you delete these objects, delete all ProxyGroups and Recorders, and wait until they are gone: only the operator can take
# what they have out of the tailnet, and their definitions go with it. Then remove its device in the admin console.
---
apiVersion: v1
kind: Namespace
metadata:
  name: tailscale
---
apiVersion: v1
kind: Secret
metadata:
  name: operator-oauth
  namespace: tailscale
stringData:
  client_id: "" # SET CLIENT ID HERE
  client_secret: "" # SET CLIENT SECRET HERE
`

// TestManifests compares the static manifests with the chart.
func TestManifests(t *testing.T) {
	golden(t, root+"/manifests/operator.yaml", manifestHeader+operatorHeader+definitions(t)+manifest(t, []string{
		"admissionpolicy", "admissionpolicybinding", "controllers-clusterrole", "controllers-clusterrolebinding", "controllers-events-role", "controllers-events-rolebinding",
		"controllers-role", "controllers-rolebinding", "deployment", "role", "rolebinding", "serviceaccount", "state-secret", "workloads-configmap",
	}, "--set", "oauth.secretName=operator-oauth"))
	golden(t, root+"/manifests/authproxy-rbac.yaml", manifestHeader+manifest(t,
		[]string{"authproxy-clusterrole", "authproxy-clusterrolebinding", "authproxy-role", "authproxy-rolebinding", "authproxy-serviceaccount"},
		"--set", "apiServerProxyConfig.mode=true"))
}

// definitions returns the CustomResourceDefinitions.
func definitions(t *testing.T) string {
	t.Helper()
	paths, err := filepath.Glob(chart + "/charts/crds/crds/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no CustomResourceDefinitions: %v", err)
	}
	var all strings.Builder
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}

// manifest renders templates for kubectl: nothing in it says that helm manages it.
func manifest(t *testing.T, templates []string, args ...string) string {
	t.Helper()
	args = append([]string{"operator", chart, "--namespace", "tailscale"}, args...)
	for _, name := range templates {
		args = append(args, "--show-only", "templates/"+name+".yaml")
	}
	var lines []string
	for line := range strings.Lines(template(t, args...)) {
		if !strings.Contains(line, "managed-by:") && !strings.Contains(line, "helm.sh/chart:") && !strings.HasPrefix(line, "# Source:") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// readValues returns a YAML file's content.
func readValues(t *testing.T, path string) map[string]any {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(b, &values); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return values
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// mustRun runs a command and fails the test with all that it wrote if it fails.
func mustRun(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

// moduleDir returns the folder of a module that a go.mod file here pins, which is downloaded if
// need be.
func moduleDir(ctx context.Context, modfile, module string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-modfile="+modfile, "-json", module).Output()
	if err != nil {
		return "", fmt.Errorf("downloading %s: %w: %s", module, err, stderr(err))
	}
	var download struct{ Dir string }
	if err := yaml.Unmarshal(out, &download); err != nil {
		return "", err
	}
	return download.Dir, nil
}

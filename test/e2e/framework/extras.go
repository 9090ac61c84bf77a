// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// InstallPrometheusCRDs installs the custom resources of the Prometheus operator that the
// chart has objects for.
func (s *Suite) InstallPrometheusCRDs(ctx context.Context) error {
	modfile, err := filepath.Abs(Root + "/test/chart/modules/prometheus-operator.mod")
	if err != nil {
		return err
	}
	download := exec.CommandContext(ctx, "go", "mod", "download", "-modfile="+modfile, "-json", "github.com/prometheus-operator/prometheus-operator") //nolint:gosec // a file of the repository
	download.Dir = Root
	out, err := download.Output()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", download, err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		return err
	}
	args := []string{"--kubeconfig=" + s.Kubeconfig, "apply", "--server-side"}
	for _, name := range []string{"servicemonitors", "podmonitors", "prometheusrules"} {
		args = append(args, "--filename="+filepath.Join(module.Dir, "example/prometheus-operator-crd/monitoring.coreos.com_"+name+".yaml"))
	}
	if out, err := exec.CommandContext(ctx, s.Alice.programs.kubectl, args...).CombinedOutput(); err != nil { //nolint:gosec // kubectl
		return fmt.Errorf("custom resources of the Prometheus operator: %w\n%s", err, out)
	}
	args = []string{"--kubeconfig=" + s.Kubeconfig, "wait", "--for=condition=Established", "crd", "--all"}
	if out, err := exec.CommandContext(ctx, s.Alice.programs.kubectl, args...).CombinedOutput(); err != nil { //nolint:gosec // kubectl
		return fmt.Errorf("custom resources of the Prometheus operator: %w\n%s", err, out)
	}
	return nil
}

// Mirror gives the image of tailhelm another name on every node, as if it had been pulled
// from a mirror by its digest, which it returns.
func (s *Suite) Mirror(ctx context.Context, registry string) (digest string, err error) {
	nodes, err := s.Nodes()
	if err != nil {
		return "", err
	}
	// What follows the registry in the name of the chart's image.
	_, path, _ := strings.Cut(s.image.repository, "/")
	for _, node := range nodes {
		var list strings.Builder
		from := s.image.repository + ":" + s.image.tag
		if err := node.CommandContext(ctx, "ctr", "--namespace=k8s.io", "images", "list", "name=="+from).SetStdout(&list).Run(); err != nil {
			return "", fmt.Errorf("images of %s: %w", node, err)
		}
		for field := range strings.FieldsSeq(list.String()) {
			if strings.HasPrefix(field, "sha256:") {
				digest = field
			}
		}
		to := registry + "/" + path + "@" + digest
		if err := node.CommandContext(ctx, "ctr", "--namespace=k8s.io", "images", "tag", "--force", from, to).Run(); err != nil {
			return "", fmt.Errorf("tag %s on %s: %w", to, node, err)
		}
	}
	return digest, nil
}

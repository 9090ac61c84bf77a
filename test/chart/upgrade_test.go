// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tailhelm/tailhelm/test/kubernetes"
)

// TestFewerOperators goes from one operator to several and back with server-side apply, which leaves in place what it has not set:
// Kubernetes refuses the strategy Recreate beside what it has filled in for RollingUpdate.
func TestFewerOperators(t *testing.T) {
	r := &rig{Cluster: kubernetes.New(t, kubernetes.Options{})}
	r.namespace(t, "operators")
	for _, step := range []struct{ replicas, strategy string }{{"1", "Recreate"}, {"2", "RollingUpdate"}, {"1", "Recreate"}} {
		apply := r.Kubectl(t.Context(), "apply", "--server-side", "--field-manager=helm", "--filename=-")
		apply.Stdin = strings.NewReader(template(t, "operators", chart, "--namespace", "operators", "--show-only", "templates/deployment.yaml", "--set", "operatorConfig.replicas="+step.replicas))
		mustRun(t, apply)
		d, err := r.Client().AppsV1().Deployments("operators").Get(t.Context(), "operator", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := string(d.Spec.Strategy.Type); got != step.strategy {
			t.Errorf("%s operators have the strategy %s, want %s", step.replicas, got, step.strategy)
		}
	}
}

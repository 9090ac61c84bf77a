// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// WriteArtifacts writes what there is to know of the release into a folder: what is in
// its namespace, logs, events, helm's view, what the operator says of itself, and the
// state of the tailnet. Files that cannot be written hold the reason.
func (r *Release) WriteArtifacts(ctx context.Context, t *testing.T) {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join(*artifacts, strings.ReplaceAll(t.Name(), "/", "_")))
	if err == nil {
		err = os.MkdirAll(dir, 0o750)
	}
	if err != nil {
		t.Logf("no artifacts: %v", err)
		return
	}
	t.Logf("artifacts: %s", dir)
	write := func(name string, content []byte, err error) {
		if err != nil {
			content = append(content, "\nERROR: "+err.Error()+"\n"...)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Logf("artifact %s: %v", name, err)
		}
	}
	command := func(file, program string, args ...string) {
		cmd := exec.CommandContext(ctx, program, append(args, "--namespace="+r.Namespace)...) //nolint:gosec // kubectl and helm
		cmd.Env = append(os.Environ(), "KUBECONFIG="+r.suite.Kubeconfig)
		out, err := cmd.CombinedOutput()
		write(file, out, err)
	}
	kubectl := r.suite.Alice.programs.kubectl
	command("objects.txt", kubectl, "get", "all,events,configmaps,serviceaccounts,roles,rolebindings", "--output=wide")
	command("describe.txt", kubectl, "describe", "pods,deployments")
	command("events.txt", kubectl, "get", "events", "--sort-by=.lastTimestamp")
	command("helm-values.yaml", "helm", "get", "values", r.Name)
	command("helm-manifest.yaml", "helm", "get", "manifest", r.Name)
	command("helm-history.txt", "helm", "history", r.Name)
	command("resources.yaml", kubectl, "get", "proxygroups,proxyclasses,recorders", "--output=yaml")
	for _, pod := range r.pods(ctx, t, "") {
		command(pod.Name+".log", kubectl, "logs", pod.Name, "--all-containers")
		command(pod.Name+"-previous.log", kubectl, "logs", pod.Name, "--all-containers", "--previous")
		for _, path := range []string{"metrics", "readyz"} {
			out, err := r.ask(ctx, &pod, path)
			write(pod.Name+"-"+path+".txt", out, err)
		}
	}
	state, err := json.MarshalIndent(r.suite.Tailnet.Devices(), "", "  ")
	write("tailnet.json", state, err)
}

// podSelector selects the operator's pods: not those of the Job that cleans up, and no replicas.
func podSelector(release string) string {
	return "app.kubernetes.io/instance=" + release + ",app.kubernetes.io/component=operator"
}

// Pods are the operator's pods.
func (r *Release) Pods(ctx context.Context, t *testing.T) []corev1.Pod {
	t.Helper()
	return r.pods(ctx, t, podSelector(r.Name))
}

func (r *Release) pods(ctx context.Context, t *testing.T, selector string) []corev1.Pod {
	t.Helper()
	list, err := r.suite.Kube.CoreV1().Pods(r.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		t.Errorf("pods of %s: %v", r.Namespace, err)
		return nil
	}
	return list.Items
}

// ask asks a pod on its metrics port, from the pod's node: as a kubelet does, and without
// the API server.
func (r *Release) ask(ctx context.Context, pod *corev1.Pod, path string) ([]byte, error) {
	if pod.Status.PodIP == "" {
		return nil, fmt.Errorf("pod %s has no address", pod.Name)
	}
	node, err := r.suite.node(pod.Spec.NodeName)
	if err != nil {
		return nil, err
	}
	url := "http://" + net.JoinHostPort(pod.Status.PodIP, "9002") + "/" + path + "?verbose"
	var out, problem bytes.Buffer
	cmd := node.CommandContext(ctx, "curl", "--silent", "--show-error", "--max-time", "10", url)
	if err := cmd.SetStdout(&out).SetStderr(&problem).Run(); err != nil {
		return nil, fmt.Errorf("%s on node %s: %w\n%s", url, node, err, &problem)
	}
	return out.Bytes(), nil
}

// ClusterObjects are the names of what is the release's and has no namespace.
func (r *Release) ClusterObjects(t *testing.T) []string {
	t.Helper()
	var names []string
	roles, err := r.suite.Kube.RbacV1().ClusterRoles().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range roles.Items {
		names = append(names, role.Name)
	}
	bindings, err := r.suite.Kube.RbacV1().ClusterRoleBindings().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bindings.Items {
		names = append(names, b.Name)
	}
	policies, err := r.suite.Kube.AdmissionregistrationV1().ValidatingAdmissionPolicies().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range policies.Items {
		names = append(names, p.Name)
	}
	// The chart has the namespace in their names, so that releases do not meet there.
	return slices.DeleteFunc(names, func(name string) bool {
		return !strings.Contains(name, ":"+r.Namespace+":") && !strings.Contains(name, "."+r.Namespace+".")
	})
}

// Readyz is what the operator's pod answers to /readyz?verbose, also when it is not ready.
// It is empty when there is no pod that could be asked.
func (r *Release) Readyz(ctx context.Context, t *testing.T) string {
	t.Helper()
	for _, pod := range r.Pods(ctx, t) {
		if pod.DeletionTimestamp == nil {
			return r.ReadyzOf(ctx, &pod)
		}
	}
	return ""
}

// ReadyzOf is what a pod answers to /readyz?verbose. It is empty when it cannot be asked.
func (r *Release) ReadyzOf(ctx context.Context, pod *corev1.Pod) string {
	out, _ := r.ask(ctx, pod, "readyz")
	return string(out)
}

// Log is what the operator has logged.
func (r *Release) Log(ctx context.Context, t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, pod := range r.Pods(ctx, t) {
		out, err := r.suite.Kube.CoreV1().Pods(r.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{}).DoRaw(ctx)
		if err != nil {
			t.Logf("log of pod %s: %v", pod.Name, err)
		}
		all.Write(out)
	}
	return all.String()
}

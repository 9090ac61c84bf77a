// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
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
	for _, pod := range r.Pods(ctx, t) {
		command(pod.Name+".log", kubectl, "logs", pod.Name, "--all-containers")
		command(pod.Name+"-previous.log", kubectl, "logs", pod.Name, "--all-containers", "--previous")
		for _, path := range []string{"metrics", "readyz"} {
			out, err := r.ask(ctx, pod.Name, path)
			write(pod.Name+"-"+path+".txt", out, err)
		}
	}
	state, err := json.MarshalIndent(r.suite.Tailnet.Devices(), "", "  ")
	write("tailnet.json", state, err)
}

// podSelector selects the operator's pods, but not those of the Job that cleans up.
func podSelector(release string) string {
	return "app.kubernetes.io/instance=" + release + ",app.kubernetes.io/component!=cleanup"
}

// Pods are the operator's pods.
func (r *Release) Pods(ctx context.Context, t *testing.T) []corev1.Pod {
	t.Helper()
	list, err := r.suite.Kube.CoreV1().Pods(r.Namespace).List(ctx, metav1.ListOptions{LabelSelector: podSelector(r.Name)})
	if err != nil {
		t.Errorf("pods of %s: %v", r.Namespace, err)
		return nil
	}
	return list.Items
}

// ask asks the operator on its metrics port, through the API server.
func (r *Release) ask(ctx context.Context, pod, path string) ([]byte, error) {
	return r.suite.Kube.CoreV1().RESTClient().Get().Namespace(r.Namespace).Resource("pods").Name(pod+":9002").
		SubResource("proxy").Suffix(path).Param("verbose", "true").DoRaw(ctx)
}

// Readyz is what the operator's pod answers to /readyz?verbose, an error of its as well.
// It is empty when there is no pod that could be asked.
func (r *Release) Readyz(ctx context.Context, t *testing.T) string {
	t.Helper()
	for _, pod := range r.Pods(ctx, t) {
		if pod.DeletionTimestamp == nil && pod.Status.PodIP != "" {
			out, _ := r.ask(ctx, pod.Name, "readyz") // not ready is an error, with an answer
			return string(out)
		}
	}
	return ""
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

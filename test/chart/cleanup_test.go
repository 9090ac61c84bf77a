// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"encoding/json"
	"os/exec"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/tailhelm/tailhelm/test/kubernetes"
	"github.com/tailhelm/tailhelm/test/tailhelm"
)

// TestCleanup uninstalls a release with the Job that cleans up before, whose end this test plays.
func TestCleanup(t *testing.T) {
	r := &rig{Cluster: kubernetes.New(t, kubernetes.Options{})}
	r.namespace(t, "cleanup")
	mustRun(t, r.upgrade(t.Context(), "cleanup", "cleanup", "--values", exampleFiles(t)["ha-auth"], "--set", "networkPolicy.enabled=true,recorders[0].name=recorder"))
	jobs := r.Client().BatchV1().Jobs("cleanup")
	watcher, err := jobs.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Stop()

	uninstall := r.Helm(t.Context(), "uninstall", "cleanup", "--namespace", "cleanup")
	ended := make(chan error, 1)
	go func() {
		out, err := uninstall.CombinedOutput()
		t.Logf("helm uninstall: %s", out)
		ended <- err
	}()

	job := awaitJob(t, watcher, ended)
	pod := &corev1.Pod{ObjectMeta: job.Spec.Template.ObjectMeta, Spec: job.Spec.Template.Spec}
	pod.Name = "cleanup-0"
	if _, err := r.Client().CoreV1().Pods("cleanup").Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Errorf("the pod that cleans up is not admitted: %v", err)
	}
	// All is there still, and the Job may do what it has to.
	mustRun(t, r.Kubectl(t.Context(), "--namespace=cleanup", "get", "deployment/operator", "proxygroup/my-cluster", "recorder/recorder", "secret/operator", "networkpolicy/operator-cleanup"))
	const account = "system:serviceaccount:cleanup:operator-cleanup"
	r.check(t, map[string][]action{account: {
		{Verb: "list", Group: "tailscale.com", Resource: "proxygroups"},
		{Verb: "delete", Group: "tailscale.com", Resource: "proxygroups", Name: "my-cluster"},
		{Verb: "patch", Group: "tailscale.com", Resource: "proxygroups", Name: "my-cluster"},
		{Verb: "list", Group: "tailscale.com", Resource: "recorders"},
		{Verb: "delete", Group: "tailscale.com", Resource: "recorders", Name: "recorder"},
		{Verb: "patch", Group: "tailscale.com", Resource: "recorders", Name: "recorder"},
		{Verb: "get", Group: "apps", Resource: "deployments", Namespace: "cleanup", Name: "operator"},
		{Verb: "patch", Group: "apps", Resource: "deployments", Subresource: "scale", Namespace: "cleanup", Name: "operator"},
		{Verb: "list", Resource: "pods", Namespace: "cleanup"},
		{Verb: "get", Resource: "secrets", Namespace: "cleanup", Name: "operator"},
		{Verb: "delete", Resource: "secrets", Namespace: "cleanup", Name: "operator"},
	}}, true)
	r.check(t, map[string][]action{account: {
		{Verb: "get", Resource: "secrets", Namespace: "cleanup", Name: "operator-oauth"},
		{Verb: "list", Resource: "secrets", Namespace: "cleanup"},
		{Verb: "patch", Group: "apps", Resource: "deployments", Namespace: "cleanup", Name: "operator"},
		{Verb: "delete", Group: "tailscale.com", Resource: "proxyclasses", Name: "a"},
		impersonate("users", "alice@example.com"),
	}}, false)

	runCleanup(t, r, job)
	mustRun(t, r.Kubectl(t.Context(), "wait", "--for=delete", "--timeout=1m", "proxygroup/my-cluster", "recorder/recorder"))
	for kind, name := range map[string]string{"secret": "operator", "proxygroup": "my-cluster", "recorder": "recorder"} {
		if out, err := r.Kubectl(t.Context(), "--namespace=cleanup", "get", kind, name).CombinedOutput(); err == nil {
			t.Errorf("tailhelm cleanup left %s", out)
		}
	}
	if got := output(t, r.Kubectl(t.Context(), "--namespace=cleanup", "get", "deployment", "operator", "--output=jsonpath={.spec.replicas}")); got != "0" {
		t.Errorf("tailhelm cleanup left the operator with %s replicas", got)
	}

	complete(t, r, job)
	if err := <-ended; err != nil {
		t.Fatalf("helm uninstall: %v", err)
	}
	if left := r.left(t, "cleanup"); len(left) > 0 {
		t.Errorf("left after helm uninstall: %v", left)
	}
	if _, err := jobs.Get(t.Context(), job.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the Job is still there: %v", err)
	}
}

// awaitJob returns the first Job that somebody makes, unless helm ends before that.
func awaitJob(t *testing.T, watcher watch.Interface, ended <-chan error) *batchv1.Job {
	t.Helper()
	select {
	case event := <-watcher.ResultChan():
		job, ok := event.Object.(*batchv1.Job)
		if !ok {
			t.Fatalf("the watch of Jobs gives %v", event)
		}
		return job
	case err := <-ended:
		t.Fatalf("helm uninstall ended without a Job: %v", err)
	}
	return nil
}

// runCleanup runs what the Job's pod would, with the rights of its ServiceAccount. There are no
// credentials for the Tailscale API.
func runCleanup(t *testing.T, r *rig, job *batchv1.Job) {
	t.Helper()
	program, err := tailhelm.Build(t.Context(), t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	token, err := r.ServiceAccountToken(t.Context(), job.Namespace, job.Spec.Template.Spec.ServiceAccountName)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := r.KubeconfigFor("cleanup", r.TokenConfig(token))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, job.Spec.Template.Spec.Containers[0].Args...)
	cmd.Env = []string{"KUBECONFIG=" + kubeconfig, "CLIENT_ID_FILE=/nonexistent", "CLIENT_SECRET_FILE=/nonexistent"}
	t.Logf("%s", mustRun(t, cmd))
}

// complete says that a Job has ended well, as its controller would.
func complete(t *testing.T, r *rig, job *batchv1.Job) {
	t.Helper()
	now := metav1.NewTime(time.Now())
	var conditions []batchv1.JobCondition
	for _, condition := range []batchv1.JobConditionType{batchv1.JobSuccessCriteriaMet, batchv1.JobComplete} {
		conditions = append(conditions, batchv1.JobCondition{Type: condition, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	status := batchv1.JobStatus{StartTime: &now, CompletionTime: &now, Succeeded: 1, Conditions: conditions}
	patch, err := json.Marshal(map[string]any{"status": status})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Client().BatchV1().Jobs(job.Namespace).Patch(t.Context(), job.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// patience bounds a test's waits. It is only ever spent by a test that fails.
const patience = 2 * time.Minute

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// run runs kubectl and returns what it wrote, both streams in one.
func run(t *testing.T, c *Cluster, args ...string) (string, error) {
	t.Helper()
	out, err := c.Kubectl(patient(t), args...).CombinedOutput()
	return string(out), err
}

// must runs kubectl and fails the test if it fails.
func must(t *testing.T, c *Cluster, args ...string) string {
	t.Helper()
	out, err := run(t, c, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// echoPod is a Pod whose main process repeats what it reads.
const echoPod = `apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  nodeName: node
  containers:
  - name: main
    image: none
    stdin: true
    command: [sh, -c, 'echo started by $GREETER; while read line; do echo "you said $line"; done']
    env: [{name: GREETER, value: the test}]
  - {name: side, image: none}
`

// shared is the cluster of the tests that leave it as it was. It has a node.
var shared struct {
	sync.Mutex
	cluster *Cluster
	kubelet *Kubelet
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.cluster != nil {
		if err := shared.cluster.close(code != 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func sharedCluster(t *testing.T) (*Cluster, *Kubelet) {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil {
		c, err := Start(t.Context(), Options{APIServerFlags: []string{"--min-request-timeout=301"}})
		if err != nil {
			t.Fatal(err)
		}
		k, err := c.StartKubelet(patient(t), KubeletOptions{})
		if err != nil {
			t.Fatal(errors.Join(err, c.Close()))
		}
		shared.cluster, shared.kubelet = c, k
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("logs of the cluster: %s", shared.cluster.Dir())
		}
	})
	return shared.cluster, shared.kubelet
}

// echo runs an echoPod of that name until the test ends.
func echo(t *testing.T, name string) (*Cluster, *Kubelet) {
	t.Helper()
	c, k := sharedCluster(t)
	create := c.Kubectl(patient(t), "create", "-f", "-")
	create.Stdin = strings.NewReader(strings.Replace(echoPod, "NAME", name, 1))
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("create a pod: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		// Until it is gone: the next test has a Pod of the same name.
		ctx := context.WithoutCancel(t.Context())
		out, err := c.Kubectl(ctx, "delete", "pod", name, "--ignore-not-found", "--timeout=100s").CombinedOutput()
		if err != nil {
			t.Errorf("delete the pod: %v\n%s", err, out)
		}
	})
	must(t, c, "wait", "--for=condition=Ready", "--timeout=100s", "pod/"+name)
	return c, k
}

func TestVersion(t *testing.T) {
	c, _ := sharedCluster(t)
	out := must(t, c, "version")
	if n := strings.Count(out, Version); n != 2 {
		t.Errorf("%s is there %d times, want client and server:\n%s", Version, n, out)
	}
}

func TestNamespaceIsFurnished(t *testing.T) {
	c, _ := sharedCluster(t)
	must(t, c, "create", "namespace", "fresh")
	for _, object := range []string{"serviceaccount/default", "configmap/kube-root-ca.crt"} {
		must(t, c, "wait", "--for=create", "--timeout=100s", "-n", "fresh", object)
	}
}

func TestHelm(t *testing.T) {
	c, _ := sharedCluster(t)
	out, err := c.Helm(patient(t), "list", "--all-namespaces", "--output=json").CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != "[]" {
		t.Errorf("helm list: %v\n%s", err, got)
	}
}

func TestAPIServerFlags(t *testing.T) {
	c, _ := sharedCluster(t)
	if out := must(t, c, "get", "--raw", "/flagz"); !regexp.MustCompile(`min-request-timeout\W+301`).MatchString(out) {
		t.Errorf("the flag is not in:\n%s", out)
	}
}

// TestServiceAccount has a ServiceAccount without rights ask for something, and looks
// up what the API server made of it.
func TestServiceAccount(t *testing.T) {
	c, _ := sharedCluster(t)
	token, err := c.ServiceAccountToken(patient(t), "default", "default")
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := c.KubeconfigFor("nobody", c.TokenConfig(token))
	if err != nil {
		t.Fatal(err)
	}
	const user = "system:serviceaccount:default:default"
	if out := must(t, c, "--kubeconfig", kubeconfig, "auth", "whoami"); !strings.Contains(out, user) {
		t.Errorf("kubectl auth whoami says:\n%s", out)
	}
	out, err := run(t, c, "--kubeconfig", kubeconfig, "get", "secrets", "-n", "kube-system")
	if err == nil || !strings.Contains(out, `User "`+user+`" cannot list resource "secrets"`) {
		t.Errorf("error = %v, and kubectl says:\n%s", err, out)
	}
	event, err := c.WaitForAuditEvent(patient(t), AuditFilter{User: user, Verb: "list", Resource: "secrets", Namespace: "kube-system"})
	if err != nil {
		t.Fatal(err)
	}
	if event.ResponseStatus.Code != http.StatusForbidden {
		t.Errorf("audit event: code = %d, want %d", event.ResponseStatus.Code, http.StatusForbidden)
	}
	if events, err := c.AuditEvents(AuditFilter{User: user, Verb: "delete"}); err != nil || len(events) > 0 {
		t.Errorf("audit events of what nobody did: %v, %v", events, err)
	}
}

// TestRestart stops the API server gently, then kills it, and looks for what was
// stored before.
func TestRestart(t *testing.T) {
	c, _ := sharedCluster(t)
	configMaps := c.Client().CoreV1().ConfigMaps("default")
	kept := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}}
	if _, err := configMaps.Create(patient(t), kept, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, stop := range map[string]func() error{
		"stopped": func() error { return c.StopAPIServer(patient(t)) },
		"killed":  c.KillAPIServer,
	} {
		if err := stop(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := configMaps.Get(patient(t), "kept", metav1.GetOptions{}); err == nil || apierrors.IsNotFound(err) {
			t.Errorf("%s API server: error = %v, want no connection", name, err)
		}
		if err := c.StartAPIServer(patient(t)); err != nil {
			t.Fatal(err)
		}
		if _, err := configMaps.Get(patient(t), "kept", metav1.GetOptions{}); err != nil {
			t.Errorf("after the API server was %s: %v", name, err)
		}
	}
}

func TestClientCertificate(t *testing.T) {
	c, _ := sharedCluster(t)
	config, err := c.UserConfig("jane", "jane@example.com", "developers")
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := c.KubeconfigFor("jane", config)
	if err != nil {
		t.Fatal(err)
	}
	out := must(t, c, "--kubeconfig", kubeconfig, "auth", "whoami")
	for _, want := range []string{"jane@example.com", "developers"} {
		if !strings.Contains(out, want) {
			t.Errorf("kubectl auth whoami does not say %s:\n%s", want, out)
		}
	}
	client, err := kubernetes.NewForConfig(c.AnonymousConfig())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Pods("").List(patient(t), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("anonymous: error = %v, want forbidden", err)
	}
}

func TestStartSaysWhatTheServerSaid(t *testing.T) {
	_, err := Start(patient(t), Options{APIServerFlags: []string{"--no-such-flag"}})
	if err == nil || !strings.Contains(err.Error(), "unknown flag: --no-such-flag") {
		t.Errorf("error = %v, want kube-apiserver's words", err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	c, err := Start(patient(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := c.Dir()
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want that it is gone", dir, err)
	}
	if err := c.StartAPIServer(patient(t)); err == nil {
		t.Error("a closed cluster starts an API server")
	}
}

func TestControllerManager(t *testing.T) {
	if testing.Short() {
		t.Skip("builds kube-controller-manager, which takes minutes the first time")
	}
	c := New(t, Options{ControllerManager: true})
	if _, err := c.StartKubelet(patient(t), KubeletOptions{Schedule: true}); err != nil {
		t.Fatal(err)
	}
	must(t, c, "create", "namespace", "work")
	must(t, c, "create", "deployment", "-n", "work", "web", "--image=none", "--replicas=2")
	must(t, c, "rollout", "status", "-n", "work", "deployment/web", "--timeout=100s")
	must(t, c, "delete", "namespace", "work", "--timeout=100s")
}

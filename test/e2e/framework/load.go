// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// ClientConfig is what client-go makes of the caller's kubeconfig on the caller's device:
// its way out is the tailnet's SOCKS5 server, and it trusts what the device does.
func (c *Caller) ClientConfig() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return nil, err
	}
	config.Proxy = http.ProxyURL(&url.URL{Scheme: "socks5", Host: c.socks})
	for _, kv := range c.env {
		if path, ok := strings.CutPrefix(kv, "SSL_CERT_FILE="); ok {
			config.CAFile = path
		}
	}
	return config, nil
}

// Cat is a kubectl process that has the pod [Pod] write back what it reads.
func (c *Caller) Cat(ctx context.Context) *exec.Cmd {
	return c.command(ctx, Options{}, "exec", "--stdin", "--container=main", Pod, "--", "cat")
}

// Kill sends SIGKILL to the process of the only container of one of the release's pods.
func (r *Release) Kill(ctx context.Context, pod *corev1.Pod) error {
	nodes, err := r.suite.Nodes()
	if err != nil {
		return err
	}
	r.exits.expectKill(pod.Status.ContainerStatuses[0].ContainerID)
	_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	for _, node := range nodes {
		if node.String() != pod.Spec.NodeName {
			continue
		}
		var out bytes.Buffer
		if err := node.CommandContext(ctx, "ctr", "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", id).SetStdout(&out).SetStderr(&out).Run(); err != nil {
			return fmt.Errorf("killing pod %s on %s: %w\n%s", pod.Name, node, err, &out)
		}
		return nil
	}
	return fmt.Errorf("killing pod %s: the cluster has no node %q", pod.Name, pod.Spec.NodeName)
}

// KeepArtifact writes what a test has measured into the folder of artifacts, whether the
// test fails or not. It returns the file's path.
func KeepArtifact(name string, content any) (string, error) {
	data, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return "", err
	}
	path, err := filepath.Abs(filepath.Join(*artifacts, name))
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(path, append(data, '\n'), 0o600)
}

// PodReady says whether a pod is ready, and not about to go.
func PodReady(pod *corev1.Pod) bool { return podReady(pod) }

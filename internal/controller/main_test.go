// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"github.com/go-logr/logr"

	"github.com/tailhelm/tailhelm/test/kubernetes"
)

// patience bounds what should take seconds, on a machine that does much else.
const patience = 2 * time.Minute

// quick is the timing of tests.
var quick = timing{
	resync: 2 * time.Second, suspect: time.Second, refused: time.Second, drain: 20 * time.Second, abandon: time.Hour,
	reissue: 100 * time.Millisecond, keyLife: time.Hour, keyEvery: time.Hour, backoff: 200 * time.Millisecond, backoffMax: time.Second,
}

// release is whose definitions tests install.
var release = types.NamespacedName{Namespace: "tailscale", Name: "operator"}

// shared is what tests share: a cluster with kube-controller-manager, so that
// StatefulSets make Pods and what belongs to nobody is collected.
var shared struct {
	cluster *kubernetes.Cluster
	client  client.Client
	// workloads is the folder with the chart's templates, as the operator's pod has it.
	workloads string
}

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) (code int) {
	ctx := context.Background()
	ctrllog.SetLogger(logr.FromSlogHandler(slog.DiscardHandler))
	var err error
	defer func() {
		if shared.cluster != nil {
			err = errors.Join(err, shared.cluster.Close())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "what the tests share:", err)
			code = 1
		}
	}()
	if shared.cluster, err = kubernetes.Start(ctx, kubernetes.Options{ControllerManager: true}); err != nil {
		return 1
	}
	if shared.client, err = newCluster(ctx, shared.cluster); err != nil {
		return 1
	}
	if shared.workloads, err = os.MkdirTemp("", "workloads-"); err != nil {
		return 1
	}
	defer func() { err = errors.Join(err, os.RemoveAll(shared.workloads)) }()
	if err = writeWorkloads(ctx, shared.cluster, shared.workloads); err != nil {
		return 1
	}
	return m.Run()
}

// newCluster installs our definitions in a cluster and returns its administrator's
// client.
func newCluster(ctx context.Context, cluster *kubernetes.Cluster) (client.Client, error) {
	s, err := scheme()
	if err != nil {
		return nil, err
	}
	c, err := client.New(cluster.Config(), client.Options{Scheme: s})
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler)
	if err := InstallCRDs(ctx, c, release, log); err != nil {
		return nil, err
	}
	d, err := discovery.NewDiscoveryClientForConfig(cluster.Config())
	if err != nil {
		return nil, err
	}
	return c, waitForKinds(ctx, d, New(Config{Log: log}).waits, kindProxyGroup, kindProxyClass)
}

// writeWorkloads writes into dir what the chart mounts into the operator's pod.
func writeWorkloads(ctx context.Context, cluster *kubernetes.Cluster, dir string) error {
	out, err := cluster.Helm(ctx, "template", "operator", "../../charts/tailscale-operator", "--namespace", "tailscale",
		"--kube-version", "1.36", "--show-only", "templates/workloads-configmap.yaml").Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		return fmt.Errorf("rendering the chart: %w: %s", err, failed.Stderr)
	} else if err != nil {
		return fmt.Errorf("rendering the chart: %w", err)
	}
	var files corev1.ConfigMap
	if err := yaml.Unmarshal(out, &files); err != nil {
		return fmt.Errorf("reading the chart's ConfigMap: %w", err)
	}
	for name, content := range files.Data {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

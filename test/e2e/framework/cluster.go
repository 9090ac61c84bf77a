// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
	"sigs.k8s.io/kind/pkg/cluster"
	"sigs.k8s.io/kind/pkg/cluster/nodes"
	kindcmd "sigs.k8s.io/kind/pkg/cmd"
)

// dockerRuns fails with one line where there is no Docker engine.
func dockerRuns(ctx context.Context) error {
	if err := exec.CommandContext(ctx, "docker", "info").Run(); err != nil {
		return errors.New("no Docker engine is running: these tests need one (.ci/docker-engine starts Debian's)")
	}
	return nil
}

func provider() *cluster.Provider {
	return cluster.NewProvider(cluster.ProviderWithDocker(), cluster.ProviderWithLogger(kindcmd.NewLogger()))
}

// clusterConfig has two nodes that pods can be on, so that one can be drained. An API server
// of OpenShift has the admission plugin OwnerReferencesPermissionEnforcement; this one, too.
func clusterConfig() *v1alpha4.Cluster {
	const schedulable = "kind: InitConfiguration\nnodeRegistration:\n  taints: []\n"
	const admission = "kind: ClusterConfiguration\napiServer:\n  extraArgs:\n" +
		"    - {name: enable-admission-plugins, value: \"NodeRestriction,OwnerReferencesPermissionEnforcement\"}\n"
	return &v1alpha4.Cluster{
		TypeMeta:             v1alpha4.TypeMeta{APIVersion: "kind.x-k8s.io/v1alpha4", Kind: "Cluster"},
		KubeadmConfigPatches: []string{admission},
		Nodes: []v1alpha4.Node{
			{Role: v1alpha4.ControlPlaneRole, KubeadmConfigPatches: []string{schedulable}},
			{Role: v1alpha4.WorkerRole},
		},
	}
}

// startCluster creates the cluster, or finds the one to be used again.
func (s *Suite) startCluster() error {
	p := provider()
	existing, err := p.List()
	if err != nil {
		return err
	}
	switch there := slices.Contains(existing, *clusterName); {
	case there && *reuse:
		err = p.ExportKubeConfig(*clusterName, s.Kubeconfig, false)
	case there:
		return fmt.Errorf("the kind cluster %s is there already: delete it (kind delete cluster), or use it with -reuse", *clusterName)
	default:
		err = s.createCluster(p)
	}
	if err != nil {
		return fmt.Errorf("kind cluster %s: %w", *clusterName, err)
	}
	if s.gateway, err = gateway(); err != nil {
		return err
	}
	return s.connect()
}

func (s *Suite) createCluster(p *cluster.Provider) error {
	options := []cluster.CreateOption{
		cluster.CreateWithV1Alpha4Config(clusterConfig()),
		cluster.CreateWithKubeconfigPath(s.Kubeconfig),
		cluster.CreateWithDisplayUsage(false), cluster.CreateWithDisplaySalutation(false),
		cluster.CreateWithWaitForReady(*patience),
	}
	if *nodeImage != "" {
		options = append(options, cluster.CreateWithNodeImage(*nodeImage))
	}
	return p.Create(*clusterName, options...)
}

func (s *Suite) stopCluster() error {
	if *keep {
		fmt.Printf("the cluster %s stays; use it again with -reuse\n", *clusterName)
		return nil
	}
	return provider().Delete(*clusterName, s.Kubeconfig)
}

// gateway is this machine's address on the network of kind's nodes.
func gateway() (string, error) {
	out, err := exec.Command("docker", "network", "inspect", "kind", "--format", "{{range .IPAM.Config}}{{.Gateway}} {{end}}").Output() //nolint:noctx // local and short
	if err != nil {
		return "", fmt.Errorf("the network of kind: %w", err)
	}
	for field := range strings.FieldsSeq(string(out)) {
		if a, err := netip.ParseAddr(field); err == nil && a.Is4() {
			return field, nil
		}
	}
	return "", fmt.Errorf("the network of kind has no IPv4 gateway: %s", out)
}

// Nodes are the nodes of the cluster, as containers.
func (s *Suite) Nodes() ([]nodes.Node, error) { return provider().ListInternalNodes(*clusterName) }

// ControlPlane is the node that runs the API server.
func (s *Suite) ControlPlane() (nodes.Node, error) {
	all, err := s.Nodes()
	if err != nil {
		return nil, err
	}
	for _, n := range all {
		if role, err := n.Role(); err == nil && role == "control-plane" {
			return n, nil
		}
	}
	return nil, errors.New("the cluster has no control plane")
}

// node is the node of this name, as a container.
func (s *Suite) node(name string) (nodes.Node, error) {
	all, err := s.Nodes()
	if err != nil {
		return nil, err
	}
	for _, n := range all {
		if n.String() == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("the cluster has no node %q", name)
}

// connectNodes gives each node routes to the pods of the others, which kind's own
// network does with kindnet; the node image of this repository has none.
func (s *Suite) connectNodes(ctx context.Context) error {
	list, err := s.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	containers, err := s.Nodes()
	if err != nil {
		return err
	}
	for _, from := range containers {
		for _, to := range list.Items {
			address := internalIP(&to)
			if from.String() == to.Name || to.Spec.PodCIDR == "" || address == "" {
				continue
			}
			if err := from.CommandContext(ctx, "ip", "route", "replace", to.Spec.PodCIDR, "via", address).Run(); err != nil {
				return fmt.Errorf("route from %s to %s: %w", from, to.Name, err)
			}
		}
	}
	return nil
}

func internalIP(n *corev1.Node) string {
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP && strings.Contains(a.Address, ".") {
			return a.Address
		}
	}
	return ""
}

// waitNodes waits until every node is ready and has a range of addresses for pods.
func (s *Suite) waitNodes(ctx context.Context) error {
	err := wait.PollUntilContextTimeout(ctx, time.Second, *patience, true, func(ctx context.Context) (bool, error) {
		list, err := s.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, nil //nolint:nilerr // the next attempt may work
		}
		for _, n := range list.Items {
			if n.Spec.PodCIDR == "" || !nodeReady(&n) {
				return false, nil
			}
		}
		return len(list.Items) == len(clusterConfig().Nodes), nil
	})
	if err != nil {
		return fmt.Errorf("waiting for the nodes: %w", err)
	}
	return nil
}

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

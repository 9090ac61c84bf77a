// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	_ "embed"
	"fmt"
	"strings"

	"github.com/tailhelm/tailhelm/test/binary"
)

// Version is the release of Kubernetes, which modules/kubernetes.mod pins.
const Version = "v1.36.3"

// The modules are go.mod and go.sum files; package binary says how to update them.
var (
	//go:embed modules/kubernetes.mod
	kubernetesMod []byte
	//go:embed modules/kubernetes.sum
	kubernetesSum []byte
	//go:embed modules/etcd.mod
	etcdMod []byte
	//go:embed modules/etcd.sum
	etcdSum []byte
	//go:embed modules/helm.mod
	helmMod []byte
	//go:embed modules/helm.sum
	helmSum []byte
)

var (
	kubeAPIServer         = kubernetesProgram("kube-apiserver", "about 3 minutes on 2 cores")
	kubeControllerManager = kubernetesProgram("kube-controller-manager", "about 1 minute on 2 cores")
	kubectl               = kubernetesProgram("kubectl", "about 1 minute on 2 cores")

	etcd = binary.Program{
		Module:   binary.Module{Name: "etcd", Mod: etcdMod, Sum: etcdSum},
		Package:  "go.etcd.io/etcd/server/v3",
		LDFlags:  "-s -w",
		Output:   "etcd",
		Duration: "about 1 minute on 2 cores",
	}
	helm = binary.Program{
		Module:   binary.Module{Name: "helm", Mod: helmMod, Sum: helmSum},
		Package:  "helm.sh/helm/v3/cmd/helm",
		LDFlags:  "-s -w -X helm.sh/helm/v3/internal/version.version=v3.22.0",
		Duration: "about 1 minute on 2 cores",
	}
)

func kubernetesProgram(name, duration string) binary.Program {
	// A build from modules knows no version by itself, and clients read the server's.
	const pkg = "k8s.io/component-base/version"
	number := strings.SplitN(strings.TrimPrefix(Version, "v"), ".", 3)
	flags := []string{
		"-s", "-w",
		"-X " + pkg + ".gitVersion=" + Version,
		"-X " + pkg + ".gitMajor=" + number[0],
		"-X " + pkg + ".gitMinor=" + number[1],
		"-X k8s.io/client-go/pkg/version.gitVersion=" + Version,
	}
	return binary.Program{
		Module:   binary.Module{Name: "kubernetes", Mod: kubernetesMod, Sum: kubernetesSum},
		Package:  "k8s.io/kubernetes/cmd/" + name,
		LDFlags:  strings.Join(flags, " "),
		Duration: duration,
	}
}

// Build builds every program that a cluster with the given options needs, and
// kubectl and helm, one after the other. [Start] does so by itself; call Build first
// where building must not count against a time limit.
func Build(ctx context.Context, o Options) error {
	programs := []binary.Program{etcd, kubeAPIServer, kubectl, helm}
	if o.ControllerManager {
		programs = append(programs, kubeControllerManager)
	}
	for _, p := range programs {
		if _, err := binary.Build(ctx, p); err != nil {
			return fmt.Errorf("programs of a cluster: %w", err)
		}
	}
	return nil
}

// ProgramPath is the path of a pinned program by its name, which is built if need be: etcd,
// helm, or any of Kubernetes' own that modules/kubernetes.mod names as a tool.
func ProgramPath(ctx context.Context, name string) (string, error) {
	for _, p := range []binary.Program{etcd, helm, kubeAPIServer, kubeControllerManager, kubectl} {
		if p.Name() == name {
			return binary.Build(ctx, p)
		}
	}
	return binary.Build(ctx, kubernetesProgram(name, "about 1 minute on 2 cores"))
}

// KubectlPath is the path of the pinned kubectl, which is built if need be.
func KubectlPath(ctx context.Context) (string, error) { return binary.Build(ctx, kubectl) }

// HelmPath is the path of the pinned helm, which is built if need be.
func HelmPath(ctx context.Context) (string, error) { return binary.Build(ctx, helm) }

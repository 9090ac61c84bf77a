// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tailhelm/tailhelm/test/binary"
	"github.com/tailhelm/tailhelm/test/kubernetes"
)

// suite is the Debian release of the userland: its systemd still runs on cgroup v1.
const suite = "bookworm"

// packages are what kind's own base image has, as far as clusters here use it, and runc.
var packages = []string{
	"bash", "ca-certificates", "conntrack", "curl", "e2fsprogs", "ethtool", "iproute2", "iptables", "jq", "kmod",
	"libseccomp2", "mount", "nftables", "pigz", "procps", "runc", "socat", "systemd", "util-linux",
}

var (
	//go:embed all:files Dockerfile build.go pause/main.go
	files embed.FS
	//go:embed modules
	modules embed.FS
)

// parts are the programs of a node by their file names, in groups by where they go, and
// the folder of kind's own files.
type parts struct {
	kubernetes, containerd, cni, images map[string]string
	kind                                string
}

// gather builds what goes into the image, as far as the caches lack it.
func gather(ctx context.Context) (*parts, error) {
	p := &parts{kubernetes: map[string]string{}, containerd: map[string]string{}, cni: map[string]string{}, images: map[string]string{}}
	for _, name := range []string{"kubeadm", "kubectl", "kubelet"} {
		if err := p.add(p.kubernetes, name, func() (string, error) { return kubernetes.ProgramPath(ctx, name) }); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler"} {
		if err := p.add(p.images, name, func() (string, error) { return kubernetes.ProgramPath(ctx, name) }); err != nil {
			return nil, err
		}
	}
	for _, m := range []struct {
		to                  map[string]string
		module, pkg, output string
	}{
		{p.containerd, "containerd", "github.com/containerd/containerd/v2/cmd/containerd", "containerd"},
		{p.containerd, "containerd", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", "containerd-shim-runc-v2"},
		{p.containerd, "containerd", "github.com/containerd/containerd/v2/cmd/ctr", "ctr"},
		{p.cni, "cni", "github.com/containernetworking/plugins/plugins/main/ptp", "ptp"},
		{p.cni, "cni", "github.com/containernetworking/plugins/plugins/main/loopback", "loopback"},
		{p.cni, "cni", "github.com/containernetworking/plugins/plugins/meta/portmap", "portmap"},
		{p.cni, "cni", "github.com/containernetworking/plugins/plugins/ipam/host-local", "host-local"},
		{p.images, "coredns", ".", "coredns"},
	} {
		err := p.add(m.to, m.output, func() (string, error) {
			module, err := readModule(m.module)
			if err != nil {
				return "", err
			}
			return binary.Build(ctx, binary.Program{Module: module, Package: m.pkg, Output: m.output, LDFlags: "-s -w"})
		})
		if err != nil {
			return nil, err
		}
	}
	var err error
	p.kind, err = kindFiles(ctx)
	return p, err
}

func (p *parts) add(to map[string]string, name string, path func() (string, error)) error {
	var err error
	to[name], err = path()
	return err
}

func readModule(name string) (binary.Module, error) {
	mod, err := modules.ReadFile("modules/" + name + ".mod")
	if err != nil {
		return binary.Module{}, err
	}
	sum, err := modules.ReadFile("modules/" + name + ".sum")
	if err != nil {
		return binary.Module{}, err
	}
	program, err := modules.ReadFile("modules/" + name + ".main")
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // the program is another module's
	}
	return binary.Module{Name: name, Mod: mod, Sum: sum, Main: program}, err
}

// kindFiles downloads kind's module and returns the folder of the files that it puts
// into nodes.
func kindFiles(ctx context.Context) (string, error) {
	dir, err := os.MkdirTemp("", "nodeimage-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	m, err := readModule("kind")
	if err != nil {
		return "", err
	}
	for name, content := range map[string][]byte{"go.mod": m.Mod, "go.sum": m.Sum} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return "", err
		}
	}
	out, err := output(ctx, "go", "-C", dir, "mod", "download", "-json", "sigs.k8s.io/kind")
	if err != nil {
		return "", err
	}
	var download struct{ Dir string }
	if err := json.Unmarshal([]byte(out), &download); err != nil {
		return "", fmt.Errorf("go mod download: %w", err)
	}
	return filepath.Join(download.Dir, "images", "base", "files"), nil
}

// imageName is the image's name. Its tag changes with everything that goes in.
func (p *parts) imageName() string {
	hash := sha256.New()
	// A hash never fails. The paths of programs and of kind's files have hashes or
	// versions of their own.
	for _, group := range []map[string]string{p.kubernetes, p.containerd, p.cni, p.images} {
		for _, name := range slices.Sorted(maps.Keys(group)) {
			_, _ = fmt.Fprintln(hash, name, filepath.Base(filepath.Dir(group[name])))
		}
	}
	_, _ = fmt.Fprintln(hash, filepath.Base(filepath.Dir(filepath.Dir(filepath.Dir(p.kind)))), suite, strings.Join(packages, " "))
	_ = fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			content, _ := files.ReadFile(path)
			_, _ = fmt.Fprintf(hash, "%s %d %s", path, len(content), content)
		}
		return err
	})
	return "tailhelm.test/kind-node:" + kubernetes.Version + "-" + hex.EncodeToString(hash.Sum(nil))[:12]
}

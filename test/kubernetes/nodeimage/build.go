// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/tailhelm/tailhelm/test/kubernetes"
)

// report writes a line about progress.
func report(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// build builds the image under the given name.
func (p *parts) build(ctx context.Context, name string) error {
	start := time.Now()
	dir, err := os.MkdirTemp("", "nodeimage-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	base, err := userland(ctx, dir)
	if err != nil {
		return err
	}
	refs, err := p.buildImages(ctx, dir, base)
	if err != nil {
		return err
	}
	unloaded, err := p.buildNode(ctx, dir, base, refs["pause"])
	if err != nil {
		return err
	}
	if err := load(ctx, dir, unloaded, name, refs); err != nil {
		return err
	}
	report("built %s in %s", name, time.Since(start).Round(time.Second))
	return nil
}

// userland returns the name of an image with a Debian userland.
func userland(ctx context.Context, dir string) (string, error) {
	list := strings.Join(packages, ",")
	sum := sha256.Sum256([]byte(list))
	name := "tailhelm.test/debian:" + suite + "-" + hex.EncodeToString(sum[:6])
	if hasImage(ctx, name) {
		return name, nil
	}
	if _, err := exec.LookPath("debootstrap"); err != nil {
		return "", fmt.Errorf("install the package debootstrap: %w", err)
	}
	report("installing Debian %s into an image (first time only; about 2 minutes)", suite)
	root := filepath.Join(dir, "root")
	if _, err := output(ctx, "debootstrap", "--variant=minbase", "--include="+list, suite, root); err != nil {
		return "", err
	}
	// Package lists and documentation are of no use in a node.
	for _, unused := range []string{"var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"} {
		if err := os.RemoveAll(filepath.Join(root, unused)); err != nil {
			return "", err
		}
	}
	tar := exec.CommandContext(ctx, "tar", "-C", root, "-c", ".")                                                                                        //nolint:gosec // A folder of ours.
	load := exec.CommandContext(ctx, "docker", "import", "--change", "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "-", name) //nolint:gosec // The name is ours.
	load.Stderr = os.Stderr
	var err error
	if load.Stdin, err = tar.StdoutPipe(); err != nil {
		return "", err
	}
	if err := tar.Start(); err != nil {
		return "", err
	}
	return name, errors.Join(load.Run(), tar.Wait())
}

// buildImages builds the images of the control plane under the names that kubeadm asks
// for, and returns these names by the last element of the repository.
func (p *parts) buildImages(ctx context.Context, dir, base string) (map[string]string, error) {
	list, err := output(ctx, p.kubernetes["kubeadm"], "config", "images", "list", "--kubernetes-version="+kubernetes.Version)
	if err != nil {
		return nil, err
	}
	refs := map[string]string{}
	for ref := range strings.FieldsSeq(list) {
		repository, _, _ := strings.Cut(ref, ":")
		refs[path.Base(repository)] = ref
	}
	pause := filepath.Join(dir, "pause")
	if err := buildPause(ctx, pause); err != nil {
		return nil, err
	}
	programs := map[string]string{"pause": pause}
	for name, path := range p.images {
		programs[name] = path
	}
	for name, program := range programs {
		ref, ok := refs[name]
		if !ok {
			return nil, fmt.Errorf("kubeadm names no image of %s:\n%s", name, list)
		}
		from, to := "scratch", "/usr/local/bin/"+name
		switch name {
		case "coredns", "pause":
			to = "/" + name
		case "kube-proxy": // runs iptables
			from = base
		}
		if err := buildImage(ctx, filepath.Join(dir, "image-"+name), ref, from, program, to); err != nil {
			return nil, err
		}
	}
	return refs, nil
}

func buildPause(ctx context.Context, to string) error {
	source, err := files.ReadFile("pause/main.go")
	if err != nil {
		return err
	}
	if err := os.WriteFile(to+".go", source, 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", to, to+".go") //nolint:gosec // A file of ours.
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build pause: %w\n%s", err, out)
	}
	return nil
}

// buildImage builds an image of one program. dir is for its context.
func buildImage(ctx context.Context, dir, ref, from, program, to string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := copyFile(program, filepath.Join(dir, "program"), 0o755); err != nil {
		return err
	}
	dockerfile := fmt.Sprintf("FROM %s\nCOPY program %s\nENTRYPOINT [%q]\n", from, to, to)
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		return err
	}
	_, err := docker(ctx, "build", "--quiet", "--tag", ref, dir)
	return err
}

// buildNode builds the node without images in its containerd, and returns its name.
func (p *parts) buildNode(ctx context.Context, dir, base, pause string) (string, error) {
	node := filepath.Join(dir, "node")
	if err := os.CopyFS(filepath.Join(node, "kind"), os.DirFS(p.kind)); err != nil {
		return "", err
	}
	if err := os.CopyFS(node, files); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(node, "files", "kind", "version"), []byte(kubernetes.Version), 0o600); err != nil {
		return "", err
	}
	for folder, programs := range map[string]map[string]string{"bin": p.kubernetes, "containerd": p.containerd, "cni": p.cni} {
		if err := os.Mkdir(filepath.Join(node, folder), 0o700); err != nil {
			return "", err
		}
		for name, program := range programs {
			if err := copyFile(program, filepath.Join(node, folder, name), 0o755); err != nil {
				return "", err
			}
		}
	}
	template, err := files.ReadFile("Dockerfile")
	if err != nil {
		return "", err
	}
	dockerfile := strings.NewReplacer("FROM BASE", "FROM "+base, "PAUSE", pause).Replace(string(template))
	if err := os.WriteFile(filepath.Join(node, "Dockerfile"), []byte(dockerfile), 0o600); err != nil {
		return "", err
	}
	name := "tailhelm.test/kind-node:without-images"
	_, err = docker(ctx, "build", "--quiet", "--tag", name, node)
	return name, err
}

// importImages runs in a node's container.
const importImages = `
containerd >/tmp/containerd.log 2>&1 & pid=$!
for _ in $(seq 100); do ctr version >/dev/null 2>&1 && break; sleep .1; done
ctr --namespace k8s.io images import /images/all.tar || { cat /tmp/containerd.log >&2; exit 1; }
kill $pid; wait $pid || true
rm -f /tmp/containerd.log`

// load puts the images into the node's containerd and commits the result as name.
func load(ctx context.Context, dir, node, name string, refs map[string]string) (err error) {
	images := filepath.Join(dir, "images")
	if err := os.Mkdir(images, 0o700); err != nil {
		return err
	}
	save := []string{"save", "--output", filepath.Join(images, "all.tar")}
	for _, ref := range refs {
		save = append(save, ref)
	}
	if _, err := docker(ctx, save...); err != nil {
		return err
	}
	id, err := docker(ctx, "run", "--detach", "--privileged", "--volume", images+":/images:ro", "--entrypoint", "sleep", node, "infinity")
	if err != nil {
		return err
	}
	defer func() {
		// Also when ctx has ended: nobody else knows of the container.
		_, removeErr := docker(context.WithoutCancel(ctx), "rm", "--force", id)
		_, untagErr := docker(context.WithoutCancel(ctx), append([]string{"rmi", node}, save[3:]...)...)
		err = errors.Join(err, removeErr, untagErr)
	}()
	if _, err := docker(ctx, "exec", id, "bash", "-euc", importImages); err != nil {
		return err
	}
	entrypoint := `ENTRYPOINT ["/kind/bin/adapt-to-host", "/usr/local/bin/entrypoint", "/sbin/init"]`
	_, err = docker(ctx, "commit", "--change", entrypoint, id, name)
	return err
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from) //nolint:gosec // A program that was built for this.
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, mode) //nolint:gosec // In a folder of ours.
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

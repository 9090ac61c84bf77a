// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"sigs.k8s.io/kind/pkg/cluster/nodeutils"
)

// WorkloadImage is the image of the pods that the tests exec into.
const WorkloadImage = "tailhelm.test/workload:e2e"

// loadedImage is the image of tailhelm that the nodes have.
type loadedImage struct{ repository, tag string }

// loadImages loads the image of tailhelm and that of the workload into every node.
func (s *Suite) loadImages(ctx context.Context) error {
	manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(*image) })
	if err != nil {
		return fmt.Errorf("image of tailhelm (make images writes it): %w", err)
	}
	if len(manifest) != 1 || len(manifest[0].RepoTags) != 1 {
		return fmt.Errorf("%s: want one image with one name", *image)
	}
	tag, err := name.NewTag(manifest[0].RepoTags[0])
	if err != nil {
		return err
	}
	s.image = loadedImage{repository: tag.Repository.Name(), tag: tag.TagStr()}
	workload := filepath.Join(s.dir, "workload.tar")
	if err := s.buildWorkload(ctx, workload); err != nil {
		return err
	}
	for _, path := range []string{*image, workload} {
		if err := s.loadArchive(path); err != nil {
			return err
		}
	}
	return nil
}

func (s *Suite) loadArchive(path string) error {
	nodes, err := s.Nodes()
	if err != nil {
		return err
	}
	for _, node := range nodes {
		f, err := os.Open(path) //nolint:gosec // ours, or a flag
		if err != nil {
			return err
		}
		if err := errors.Join(nodeutils.LoadImageArchive(node, f), f.Close()); err != nil {
			return fmt.Errorf("load %s into %s: %w", path, node, err)
		}
	}
	return nil
}

// ownPrograms are commands of this module that the image of the workload has.
var ownPrograms = []string{"workload", "secretsstore"}

// buildWorkload compiles the programs and writes the archive of their image.
func (s *Suite) buildWorkload(ctx context.Context, path string) error {
	for _, name := range ownPrograms {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(s.dir, name), "github.com/tailhelm/tailhelm/test/e2e/"+name) //nolint:gosec // the Go compiler
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	content, err := workloadFiles(s.dir)
	if err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return err
	}
	image, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Entrypoint: []string{"/bin/workload"}, Env: []string{"PATH=/bin"}},
	})
	if err != nil {
		return err
	}
	if image, err = mutate.AppendLayers(image, layer); err != nil {
		return err
	}
	tag, err := name.NewTag(WorkloadImage)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(path, tag, image)
}

// workloadFiles is the archive of the workload's image: the programs of a folder, and the
// workload under all its names.
func workloadFiles(dir string) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range ownPrograms {
		content, err := os.ReadFile(filepath.Join(dir, name)) //nolint:gosec // built above
		if err != nil {
			return nil, err
		}
		header := &tar.Header{Name: "bin/" + name, Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
	}
	headers := []*tar.Header{{Name: "tmp/", Mode: 0o777, Typeflag: tar.TypeDir}}
	for _, tool := range []string{"cat", "echo", "rm", "sha256sum", "tar", "test"} {
		headers = append(headers, &tar.Header{Name: "bin/" + tool, Mode: 0o777, Typeflag: tar.TypeSymlink, Linkname: "workload"})
	}
	for _, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/x509"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const (
	root    = "../.."
	version = "v1.2.3-test"
	// limit is how many bytes an image may have, unpacked.
	limit = 70_000_000
)

// machines are the architectures.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// TestImages builds the images here and in a copy of the sources, and looks into them.
func TestImages(t *testing.T) {
	here, there := t.TempDir(), t.TempDir()
	sources := filepath.Join(t.TempDir(), "elsewhere")
	for _, name := range []string{"Makefile", "go.mod", "go.sum", "api", "charts", "cmd", "internal", "tools/images"} {
		copyTree(t, filepath.Join(root, name), filepath.Join(sources, name))
	}
	makeImages(t, root, here)
	makeImages(t, sources, there)
	for arch, machine := range machines {
		t.Run(arch, func(t *testing.T) {
			archive := read(t, filepath.Join(here, "tailhelm-"+arch+".tar"))
			if !bytes.Equal(archive, read(t, filepath.Join(there, "tailhelm-"+arch+".tar"))) {
				t.Error("the same sources in another folder make another image")
			}
			image := open(t, archive)
			checkConfig(t, image, arch)
			checkFiles(t, image, machine)
			if arch == runtime.GOARCH {
				checkVersion(t, image)
			}
		})
	}
	if !bytes.Equal(read(t, filepath.Join(here, "oci", "index.json")), read(t, filepath.Join(there, "oci", "index.json"))) {
		t.Error("the same sources in another folder make another OCI index")
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		t.Fatal(err)
	}
	if info.IsDir() {
		err = os.CopyFS(to, os.DirFS(from))
	} else {
		err = os.WriteFile(to, read(t, from), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func makeImages(t *testing.T, sources, to string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "make", "--no-print-directory", "-C", sources, "images", "VERSION="+version, "IMAGES="+to)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

// image is an archive as docker save writes it, opened.
type image struct {
	config struct {
		Architecture, OS, Created string
		Config                    struct {
			User       string
			Entrypoint []string
			Labels     map[string]string
		}
	}
	// layers are unpacked, files are those in them by their paths.
	layers [][]byte
	files  map[string]file
}

type file struct {
	header  *tar.Header
	content []byte
}

func open(t *testing.T, archive []byte) *image {
	t.Helper()
	parts := unpack(t, bytes.NewReader(archive))
	var manifest []struct {
		Config string
		Layers []string
	}
	unmarshal(t, parts["manifest.json"].content, &manifest)
	if len(manifest) != 1 {
		t.Fatalf("the archive has %d images, want 1", len(manifest))
	}
	image := &image{files: map[string]file{}}
	unmarshal(t, parts[manifest[0].Config].content, &image.config)
	for _, name := range manifest[0].Layers {
		layer, err := gzip.NewReader(bytes.NewReader(parts[name].content))
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(layer)
		if err != nil {
			t.Fatal(err)
		}
		image.layers = append(image.layers, content)
		for path, file := range unpack(t, bytes.NewReader(content)) {
			image.files[path] = file
		}
	}
	return image
}

func unpack(t *testing.T, archive io.Reader) map[string]file {
	t.Helper()
	files := map[string]file{}
	for r := tar.NewReader(archive); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = file{header, content}
	}
}

func unmarshal(t *testing.T, content []byte, to any) {
	t.Helper()
	if err := json.Unmarshal(content, to); err != nil {
		t.Fatalf("%v in %s", err, content)
	}
}

func checkConfig(t *testing.T, image *image, arch string) {
	t.Helper()
	config := image.config
	if config.OS != "linux" || config.Architecture != arch {
		t.Errorf("the image is for %s/%s", config.OS, config.Architecture)
	}
	if config.Created != "" && !strings.HasPrefix(config.Created, "0001-01-01") {
		t.Errorf("the image has a time, %s", config.Created)
	}
	if config.Config.User != "65532:65532" {
		t.Errorf("the image runs as %q", config.Config.User)
	}
	if want := []string{"/usr/local/bin/tailhelm"}; !slices.Equal(config.Config.Entrypoint, want) {
		t.Errorf("the entrypoint is %q, want %q", config.Config.Entrypoint, want)
	}
	if label := config.Config.Labels["org.opencontainers.image.version"]; label != version {
		t.Errorf("the label says version %q", label)
	}
}

// checkFiles checks that an image has a static program for the machine, certificates, and
// nothing else.
func checkFiles(t *testing.T, image *image, machine elf.Machine) {
	t.Helper()
	var size int
	for _, layer := range image.layers {
		size += len(layer)
	}
	if size > limit {
		t.Errorf("the image has %d bytes, more than %d", size, limit)
	}
	for path, file := range image.files {
		if h := file.header; h.ModTime.Unix() != 0 || h.Uname != "" || h.Mode&0o222 != 0 {
			t.Errorf("%s has the time %s, owner %q and mode %o", path, h.ModTime, h.Uname, h.Mode)
		}
		switch path {
		case "usr/local/bin/tailhelm":
			checkStatic(t, file.content, machine)
		case "etc/ssl/certs/ca-certificates.crt":
			if !x509.NewCertPool().AppendCertsFromPEM(file.content) {
				t.Error("the file of certificates has none")
			}
		default:
			t.Errorf("the image has %s", path)
		}
	}
	if len(image.files) != 2 {
		t.Errorf("the image has %d files, want 2", len(image.files))
	}
}

func checkStatic(t *testing.T, program []byte, machine elf.Machine) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	if f.Machine != machine {
		t.Errorf("the program is for %s, want %s", f.Machine, machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the program is not static: it has a %s", p.Type)
		}
	}
}

// checkVersion checks that the program says what was built.
func checkVersion(t *testing.T, image *image) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tailhelm")
	if err := os.WriteFile(path, image.files["usr/local/bin/tailhelm"].content, 0o700); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), path, "version").CombinedOutput()
	if err != nil {
		t.Fatalf("tailhelm version: %v\n%s", err, out)
	}
	if want := "tailhelm " + version + " " + runtime.Version() + " linux/" + runtime.GOARCH + "\n"; !strings.HasPrefix(string(out), want) {
		t.Errorf("tailhelm version says %q, want that it begins with %q", out, want)
	}
}

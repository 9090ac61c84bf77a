// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Command images writes the container image of tailhelm, for each architecture.
//
//	images -program tailhelm -name ghcr.io/tailhelm/tailhelm:0.1.0 -to .bin/images amd64 arm64
//
// Its arguments are the architectures. It takes the programs <program>-<architecture>, and
// writes
//
//   - <to>/tailhelm-<architecture>.tar: for "docker load" and "kind load image-archive",
//   - <to>/oci: all in one OCI image layout, for tools that push to a registry.
//
// An image is one layer with the program and the certificates of Mozilla's authorities,
// on nothing else; it runs as user 65532. No container engine is needed, and the same
// programs give the same bytes: files have no time, no owner's name, and a fixed order.
package main

import (
	"archive/tar"
	"bytes"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// limit is the size in bytes that an image, unpacked, must not exceed.
const limit = 70_000_000

// options are the flags.
type options struct {
	program, name, version, to string
	architectures              []string
}

func main() {
	var o options
	flag.StringVar(&o.program, "program", "", "path of the programs, without their -<architecture>")
	flag.StringVar(&o.name, "name", "", "name and tag of the image")
	flag.StringVar(&o.version, "version", "", "version of the program, for a label")
	flag.StringVar(&o.to, "to", "", "folder to write to")
	flag.Parse()
	o.architectures = flag.Args()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	tag, err := name.NewTag(o.name)
	if err != nil {
		return fmt.Errorf("-name %q: %w", o.name, err)
	}
	if err := os.MkdirAll(o.to, 0o750); err != nil {
		return err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range o.architectures {
		image, size, err := build(o, arch)
		if err != nil {
			return fmt.Errorf("image for %s: %w", arch, err)
		}
		if size > limit {
			return fmt.Errorf("image for %s has %d bytes, more than the %d allowed", arch, size, limit)
		}
		path := filepath.Join(o.to, "tailhelm-"+arch+".tar")
		if err := tarball.WriteToFile(path, tag, image); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		digest, err := image.Digest()
		if err != nil {
			return err
		}
		fmt.Printf("%s %s %.1f MB %s\n", path, o.name, float64(size)/1e6, digest)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
		})
	}
	oci := filepath.Join(o.to, "oci")
	if err := os.RemoveAll(oci); err != nil {
		return err
	}
	_, err = layout.Write(oci, index)
	return err
}

// build returns the image for an architecture and its size, unpacked.
func build(o options, arch string) (v1.Image, int, error) {
	program, err := os.ReadFile(o.program + "-" + arch) //nolint:gosec // make's choice
	if err != nil {
		return nil, 0, err
	}
	content, err := files(program)
	if err != nil {
		return nil, 0, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return nil, 0, err
	}
	base := mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1)
	image, err := mutate.ConfigFile(base, &v1.ConfigFile{
		OS: "linux", Architecture: arch, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			User:       "65532:65532",
			Entrypoint: []string{"/usr/local/bin/tailhelm"},
			Env:        []string{"PATH=/usr/local/bin"},
			WorkingDir: "/",
			Labels: map[string]string{
				"org.opencontainers.image.title":    "tailhelm",
				"org.opencontainers.image.source":   "https://github.com/tailhelm/tailhelm",
				"org.opencontainers.image.licenses": "Apache-2.0",
				"org.opencontainers.image.version":  o.version,
			},
		},
	})
	if err != nil {
		return nil, 0, err
	}
	image, err = mutate.AppendLayers(image, layer)
	return image, len(content), err
}

// files returns the archive of an image's files.
func files(program []byte) ([]byte, error) {
	var roots bytes.Buffer
	for root := range bundle.Roots() {
		// An authority that is trusted for some certificates only: a file cannot say so.
		if root.Constraint != nil {
			continue
		}
		if err := pem.Encode(&roots, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			return nil, err
		}
	}
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	for _, f := range []struct {
		path    string
		mode    int64
		content []byte
	}{
		{"etc/ssl/certs/ca-certificates.crt", 0o444, roots.Bytes()},
		{"usr/local/bin/tailhelm", 0o555, program},
	} {
		header := &tar.Header{Name: f.path, Mode: f.mode, Size: int64(len(f.content)), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
		if err := archive.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := archive.Write(f.content); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), archive.Close()
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Command package writes the archive of a chart, reproducibly: `helm package` puts the
// time of packaging into it.
//
//	package -chart charts/tailscale-operator -to .bin/package
package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/tailhelm/tailhelm/test/kubernetes"
)

// epoch is the time of every file: the first that zip, which some mirrors use, can say.
var epoch = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)

func main() {
	chart := flag.String("chart", "", "folder of the chart")
	to := flag.String("to", "", "folder to write the archive to")
	flag.Parse()
	if err := run(context.Background(), *chart, *to); err != nil {
		fmt.Fprintln(os.Stderr, "package:", err)
		os.Exit(1)
	}
}

// run has helm package the chart, so that what is in it is helm's to say, and writes
// the archive again without times.
func run(ctx context.Context, chart, to string) error {
	dir, err := os.MkdirTemp("", "tailhelm-package-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	helm, err := kubernetes.HelmPath(ctx)
	if err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, helm, "package", chart, "--destination", dir).CombinedOutput(); err != nil { //nolint:gosec // The arguments are make's.
		return fmt.Errorf("helm package: %w: %s", err, out)
	}
	archives, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if err != nil || len(archives) != 1 {
		return fmt.Errorf("helm package made %d archives: %w", len(archives), err)
	}
	if err := os.MkdirAll(to, 0o750); err != nil {
		return err
	}
	path := filepath.Join(to, filepath.Base(archives[0]))
	sum, err := rewrite(archives[0], path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	fmt.Printf("%s  %s\n", sum, path)
	return nil
}

// rewrite copies an archive without what differs from time to time, and returns the
// SHA-256 sum of the copy.
func rewrite(from, to string) (string, error) {
	in, err := os.Open(filepath.Clean(from))
	if err != nil {
		return "", err
	}
	defer func() { _ = in.Close() }()
	unzip, err := gzip.NewReader(in)
	if err != nil {
		return "", err
	}
	var plain strings.Builder
	if err := rewriteTar(tar.NewWriter(&plain), tar.NewReader(unzip)); err != nil {
		return "", err
	}
	out, err := os.Create(filepath.Clean(to))
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	zip, err := gzip.NewWriterLevel(io.MultiWriter(out, hash), gzip.BestCompression)
	if err != nil {
		return "", errors.Join(err, out.Close())
	}
	zip.Comment = unzip.Comment
	zip.Extra = unzip.Extra // by which helm knows its archives
	_, err = io.WriteString(zip, plain.String())
	err = errors.Join(err, zip.Close(), out.Close())
	return fmt.Sprintf("%x", hash.Sum(nil)), err
}

func rewriteTar(to *tar.Writer, from *tar.Reader) error {
	for {
		header, err := from.Next()
		if errors.Is(err, io.EOF) {
			return to.Close()
		}
		if err != nil {
			return err
		}
		if err := to.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: header.Name, Size: header.Size, Mode: 0o644, ModTime: epoch}); err != nil {
			return err
		}
		if _, err := io.CopyN(to, from, header.Size); err != nil {
			return err
		}
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package binary

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"
)

// progress gets a line when a build starts, waits or ends.
var progress io.Writer = os.Stderr

// Module is a pinned Go module: the files go.mod and go.sum of a build.
type Module struct {
	// Name says what the module is for in file names and messages: "etcd".
	Name string
	// Mod and Sum are the contents of go.mod and go.sum.
	Mod, Sum []byte
	// Main is the source of a main package of its own, which is the [Program]'s package
	// "." then. Optional.
	Main []byte
}

// Program is a main package of a [Module].
type Program struct {
	Module Module
	// Package is the import path of the main package, or "." for that of the module itself.
	Package string
	// LDFlags are flags for the linker, as "go build -ldflags" takes them.
	LDFlags string
	// Output is the file name of the program, where the package path does not end
	// in it. Optional.
	Output string
	// Duration tells people how long a first build takes: "about 3 minutes on 2
	// cores". Optional.
	Duration string
}

// Name is the file name of the program: Output, or else the last element of its
// package path that is not a major version.
func (p Program) Name() string {
	if p.Output != "" {
		return p.Output
	}
	name := path.Base(p.Package)
	if isMajorVersion(name) {
		name = path.Base(path.Dir(p.Package))
	}
	return name
}

// Version is the version of the module that holds the program, as go.mod requires
// it, or "" when go.mod does not say.
func (p Program) Version() string {
	var module, version string
	for line := range strings.Lines(string(p.Module.Mod)) {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(fields) < 2 || !strings.HasPrefix(fields[1], "v") || len(fields[0]) <= len(module) {
			continue
		}
		if p.Package == fields[0] || strings.HasPrefix(p.Package, fields[0]+"/") {
			module, version = fields[0], fields[1]
		}
	}
	return version
}

// Build returns the path of the program, which it builds if the cache has none.
//
// It is safe to call from several goroutines and processes at once. When ctx ends,
// Build stops the compiler and returns the cause. An error of a build holds what
// the go command wrote.
func Build(ctx context.Context, p Program) (string, error) {
	bin, err := build(ctx, p)
	if err != nil {
		return "", fmt.Errorf("build %s: %w", p.Name(), err)
	}
	return bin, nil
}

func build(ctx context.Context, p Program) (string, error) {
	if err := p.validate(); err != nil {
		return "", err
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	version, err := goVersion(ctx)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, p.Name()+"-"+p.key(version))
	bin := filepath.Join(dir, p.Name())
	if cached(dir, bin) {
		return bin, nil
	}

	if err := os.MkdirAll(cache, 0o750); err != nil {
		return "", err
	}
	// One lock per program, outside the entries: entries come and go, the lock stays.
	unlock, err := lock(ctx, filepath.Join(cache, p.Name()+".lock"), func() {
		report("waiting for %s, which another process builds", p.title())
	})
	if err != nil {
		return "", err
	}
	defer unlock()
	if cached(dir, bin) {
		return bin, nil
	}

	start := time.Now()
	report("building %s%s", p.title(), p.hint())
	if err := p.compile(ctx, dir, bin); err != nil {
		return "", err
	}
	report("built %s in %s", p.title(), time.Since(start).Round(100*time.Millisecond))
	prune(cache, p.Name(), dir)
	return bin, nil
}

func (p Program) validate() error {
	if p.Module.Name == "" || strings.ContainsAny(p.Module.Name, `/\`) {
		return fmt.Errorf("module name %q: want a plain file name", p.Module.Name)
	}
	if p.Package == "" {
		return errors.New("no package")
	}
	if strings.ContainsAny(p.Output, `/\`) {
		return fmt.Errorf("output %q: want a plain file name", p.Output)
	}
	if len(p.Module.Mod) == 0 {
		return fmt.Errorf("module %s: go.mod is empty", p.Module.Name)
	}
	if own := p.Package == "."; own != (len(p.Module.Main) > 0) {
		return fmt.Errorf("module %s: package %q: want \".\" where the module has a main package of its own, and only there", p.Module.Name, p.Package)
	}
	return nil
}

func (p Program) title() string {
	return strings.TrimSpace(p.Name() + " " + p.Version())
}

func (p Program) hint() string {
	if p.Duration == "" {
		return " (first time only)"
	}
	return " (first time only; " + p.Duration + ")"
}

// key hashes what goes into a build with the given version of Go.
func (p Program) key(goVersion string) string {
	h := sha256.New()
	parts := []string{
		string(p.Module.Mod), string(p.Module.Sum), p.Package, p.LDFlags,
		goVersion, runtime.GOOS, runtime.GOARCH,
	}
	if len(p.Module.Main) > 0 {
		parts = append(parts, string(p.Module.Main))
	}
	for _, part := range parts {
		// The length keeps parts apart: "ab"+"c" is not "a"+"bc". A hash never fails.
		_, _ = fmt.Fprintf(h, "%d\n%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// isMajorVersion reports whether s is the version element of an import path: v2, v3, ...
func isMajorVersion(s string) bool {
	digits, ok := strings.CutPrefix(s, "v")
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}

var reportMu sync.Mutex

func report(format string, args ...any) {
	reportMu.Lock()
	defer reportMu.Unlock()
	// Progress is for people; a closed standard error is no reason to fail a build.
	_, _ = fmt.Fprintf(progress, format+"\n", args...)
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package binary

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hello is a program that needs no network: a package of the Go distribution.
func hello(t *testing.T) Program {
	t.Helper()
	t.Setenv("TAILHELM_CACHE", t.TempDir())
	return Program{
		Module:  Module{Name: "hello", Mod: []byte("module hello\n\ngo 1.26.0\n")},
		Package: "cmd/test2json",
	}
}

// capture collects progress lines until the test ends.
func capture(t *testing.T) func() string {
	t.Helper()
	var out bytes.Buffer
	reportMu.Lock()
	progress = &out
	reportMu.Unlock()
	t.Cleanup(func() {
		reportMu.Lock()
		progress = os.Stderr
		reportMu.Unlock()
	})
	return func() string {
		reportMu.Lock()
		defer reportMu.Unlock()
		return out.String()
	}
}

func TestBuild(t *testing.T) {
	program, out := hello(t), capture(t)

	var group sync.WaitGroup
	paths, errs := make([]string, 4), make([]error, 4)
	for i := range paths {
		group.Go(func() { paths[i], errs[i] = Build(t.Context(), program) })
	}
	group.Wait()
	for i, path := range paths {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if path != paths[0] {
			t.Errorf("path = %s, and %s for another caller", path, paths[0])
		}
	}
	if n := strings.Count(out(), "building test2json"); n != 1 {
		t.Errorf("built %d times for 4 callers:\n%s", n, out())
	}

	cmd := exec.CommandContext(t.Context(), paths[0])
	cmd.Stdin = strings.NewReader("hello\n")
	if got, err := cmd.Output(); err != nil || !bytes.Contains(got, []byte(`"Output":"hello\n"`)) {
		t.Errorf("the program says %q, error %v", got, err)
	}

	before := out()
	if _, err := Build(t.Context(), program); err != nil || out() != before {
		t.Errorf("a second build: error %v, and says %q", err, strings.TrimPrefix(out(), before))
	}
}

func TestBuildOfTheModuleItself(t *testing.T) {
	program := hello(t)
	capture(t)
	program.Package = "."
	if _, err := Build(t.Context(), program); err == nil || !strings.Contains(err.Error(), "main package of its own") {
		t.Errorf("without a main package: error = %v", err)
	}
	program.Module.Main, program.Output = []byte("package main\n\nfunc main() { println(\"hello\") }\n"), "hello"
	path, err := Build(t.Context(), program)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), path).CombinedOutput(); err != nil || string(out) != "hello\n" {
		t.Errorf("the program says %q, error %v", out, err)
	}
	program.Module.Main = []byte("package main\n\nfunc main() { println(\"changed\") }\n")
	if changed, err := Build(t.Context(), program); err != nil || changed == path {
		t.Errorf("another source: %q, error %v, want another path than %q", changed, err, path)
	}
}

func TestBuildIgnoresTheCallersModule(t *testing.T) {
	program := hello(t)
	capture(t)
	t.Setenv("GOFLAGS", "-mod=vendor -tags=none")
	t.Setenv("GOWORK", filepath.Join(t.TempDir(), "go.work"))
	t.Setenv("GOOS", "plan9")
	t.Setenv("CGO_ENABLED", "1")
	if _, err := Build(t.Context(), program); err != nil {
		t.Error(err)
	}
}

func TestBuildSaysWhatTheCompilerSaid(t *testing.T) {
	program := hello(t)
	capture(t)
	program.Package = "cmd/no-such-program"
	_, err := Build(t.Context(), program)
	if err == nil || !strings.Contains(err.Error(), "is not in std") {
		t.Errorf("error = %v, want the go command's words", err)
	}
}

func TestBuildWaitsForTheLockUntilItsContextEnds(t *testing.T) {
	program, out := hello(t), capture(t)
	f, err := os.Create(filepath.Join(os.Getenv("TAILHELM_CACHE"), program.Name()+".lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := flock(f, syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}

	why := errors.New("the test had enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	// Asked before the context ends: an ended context could stop the question.
	if _, err := goVersion(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Build(ctx, program); !errors.Is(err, why) {
		t.Errorf("error = %v, want %v", err, why)
	}
	if !strings.Contains(out(), "waiting for test2json") {
		t.Errorf("says %q, want that it waits", out())
	}
}

func TestBuildStopsWithItsContext(t *testing.T) {
	program := hello(t)
	capture(t)
	if _, err := goVersion(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Build(ctx, program); !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want %v", err, context.Canceled)
	}
	if path, err := Build(t.Context(), program); err != nil {
		t.Errorf("after a canceled build: %q, %v", path, err)
	}
}

func TestPrune(t *testing.T) {
	cache := t.TempDir()
	long := time.Now().Add(-2 * unused)
	for _, name := range []string{"etcd-old", "etcd-kept", "etcd-proxy-old", "etcd-new"} {
		dir := filepath.Join(cache, name)
		if err := os.Mkdir(dir, 0o750); err != nil {
			t.Fatal(err)
		}
		if name == "etcd-new" {
			continue
		}
		if err := os.Chtimes(dir, long, long); err != nil {
			t.Fatal(err)
		}
	}
	prune(cache, "etcd", filepath.Join(cache, "etcd-kept"))
	left, err := filepath.Glob(filepath.Join(cache, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range left {
		left[i] = filepath.Base(left[i])
	}
	if got, want := strings.Join(left, " "), "etcd-kept etcd-new etcd-proxy-old"; got != want {
		t.Errorf("left = %s, want %s", got, want)
	}
}

func TestNameAndVersion(t *testing.T) {
	mod := []byte("module m\n\nrequire k8s.io/kubernetes v1.36.3\n\nrequire (\n\tk8s.io/kube v0.1.0\n\thelm.sh/helm/v3 v3.22.0\n)\n\nreplace k8s.io/api => k8s.io/api v0.36.3\n")
	for _, test := range []struct{ pkg, output, name, version string }{
		{"k8s.io/kubernetes/cmd/kubectl", "", "kubectl", "v1.36.3"},
		{"helm.sh/helm/v3/cmd/helm", "", "helm", "v3.22.0"},
		{"helm.sh/helm/v3", "", "helm", "v3.22.0"},
		{"go.etcd.io/etcd/server/v3", "etcd", "etcd", ""},
	} {
		p := Program{Module: Module{Name: "m", Mod: mod}, Package: test.pkg, Output: test.output}
		if p.Name() != test.name || p.Version() != test.version {
			t.Errorf("%s: %s %q, want %s %q", test.pkg, p.Name(), p.Version(), test.name, test.version)
		}
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package binary

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// compile builds the program into dir and moves it to bin when it is complete.
func (p Program) compile(ctx context.Context, dir, bin string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	for name, content := range map[string][]byte{"go.mod": p.Module.Mod, "go.sum": p.Module.Sum, "main.go": p.Module.Main} {
		if content == nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	// A build that is interrupted must not leave half a program under the final name.
	partial := bin + ".partial"
	args := []string{"build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-o", partial}
	if p.LDFlags != "" {
		args = append(args, "-ldflags="+p.LDFlags)
	}
	if _, err := goCommand(ctx, dir, append(args, p.Package)...); err != nil {
		return err
	}
	return os.Rename(partial, bin)
}

// goCommand runs the go command in dir and returns its standard output.
func goCommand(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // Arguments come from the packages that pin programs.
	cmd.Dir = dir
	cmd.Env = environ(os.Environ())
	// Interrupted, the go command stops its compilers and removes its scratch files;
	// killed, it would leave both behind.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("the go command is needed: %w", err)
		}
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, complaints(stderr.String()))
	}
	return stdout.String(), nil
}

// environ is the environment of a build: the caller's without what speaks of the
// caller's own module or target.
func environ(env []string) []string {
	ours := map[string]string{
		"CGO_ENABLED": "0",
		"GO111MODULE": "on",
		"GOARCH":      runtime.GOARCH,
		"GOOS":        runtime.GOOS,
		"GOWORK":      "off",
		// Not empty: an empty variable would give way to "go env -w GOFLAGS=...".
		"GOFLAGS": "-mod=readonly",
	}
	env = slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		_, ok := ours[name]
		return ok
	})
	for name, value := range ours {
		env = append(env, name+"="+value)
	}
	return env
}

// complaints is what the go command wrote, without the lines of its downloads.
func complaints(stderr string) string {
	var b strings.Builder
	for line := range strings.Lines(stderr) {
		if !strings.HasPrefix(line, "go: downloading ") {
			b.WriteString(line)
		}
	}
	return strings.TrimSpace(b.String())
}

var known struct {
	sync.Mutex
	version string
}

// goVersion is the version of the go command, asked once per process: it is not
// always the version that built this process.
func goVersion(ctx context.Context) (string, error) {
	known.Lock()
	defer known.Unlock()
	if known.version == "" {
		out, err := goCommand(ctx, os.TempDir(), "env", "GOVERSION")
		if err != nil {
			return "", err
		}
		known.version = strings.TrimSpace(out)
	}
	return known.version, nil
}

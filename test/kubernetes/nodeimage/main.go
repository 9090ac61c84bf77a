// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	nameOnly := flag.Bool("name", false, "print the image's name, and build only the programs that go in")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	name, err := run(ctx, *nameOnly)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "node image:", err)
		os.Exit(1)
	}
	fmt.Println(name)
}

func run(ctx context.Context, nameOnly bool) (string, error) {
	parts, err := gather(ctx)
	if err != nil {
		return "", err
	}
	name := parts.imageName()
	if nameOnly {
		return name, nil
	}
	if _, err := docker(ctx, "info"); err != nil {
		return "", fmt.Errorf("no Docker engine is running: %w", err)
	}
	if hasImage(ctx, name) {
		return name, nil
	}
	if os.Getuid() != 0 {
		return "", errors.New("debootstrap needs root")
	}
	return name, parts.build(ctx, name)
}

func hasImage(ctx context.Context, name string) bool {
	_, err := docker(ctx, "image", "inspect", name)
	return err == nil
}

// docker runs the Docker client and returns what it writes to its standard output.
func docker(ctx context.Context, args ...string) (string, error) {
	return output(ctx, "docker", args...)
}

// output runs a program and returns what it writes to its standard output. An error
// holds what it wrote to its standard error.
func output(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...) //nolint:gosec // Programs and arguments are this command's own.
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

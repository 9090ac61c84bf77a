// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Command demo shows the main job end to end on one machine: real kubectl
// processes, on devices of a tailnet, reach a real kube-apiserver through
// tailhelm, each as its own identity, and Kubernetes RBAC allows or refuses them.
//
// It builds what it needs from pinned modules, starts a cluster and a hermetic
// tailnet on loopback, installs the chart with helm, and runs the operator as a
// process of this machine from the Deployment's own pod spec (there is no kubelet).
// It exits with 0 only if every answer is the expected one, and leaves nothing
// running. With HOLD=1 it keeps everything up until it is interrupted.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Getenv("HOLD") != "")
	stop()
	switch {
	case errors.Is(err, errUnexpected):
		fmt.Println("\nFAILED:", err)
		os.Exit(1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run runs the demo and cleans up after it, whatever happens.
func run(ctx context.Context, hold bool) (err error) {
	s := &stage{}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.set(ctx); err != nil {
		return err
	}
	if err := s.play(ctx); err != nil {
		return err
	}
	if hold {
		s.hold(ctx)
	}
	return nil
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Command testtailnet runs a hermetic tailnet until it is interrupted.
//
// It prints what other processes need to join: the control server's URL, auth
// keys, OAuth clients and environment variables.
//
//	testtailnet --user alice@example.com --oauth tag:k8s-operator --policy policy.hujson
//	testtailnet --device laptop=alice@example.com --json
//
// With --policy, SIGHUP reads the file again.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "testtailnet:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

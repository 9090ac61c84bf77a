// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Command programs builds what the tests run: kube-apiserver, etcd, kubectl, helm
// and the rest, from pinned modules into the user's cache folder.
//
// Tests build them by themselves. But go test shows a package's output only when
// the package is done, so that the first run would be silent for minutes; and
// the time would count against the tests' own limits.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/tailhelm/tailhelm/test/kubernetes"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := kubernetes.Build(ctx, kubernetes.Options{ControllerManager: true})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

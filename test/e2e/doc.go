// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the chart and the image as people use them: on a kind cluster, with
// the helm program, kubectl, and Tailscale's own client programs.
//
//	make e2e                    everything
//	make e2e RUN=TestInstall    one test
//
// What a control plane without nodes shows already is tested in test/integration and
// test/chart, in a fraction of the time. Here is what takes pods: images, volumes,
// probes, rollouts, drained nodes, uninstallation; and every way to install, each used by
// a user with a grant, a user without, and a machine.
//
// The tests share one cluster and one tailnet (see package framework). Releases have
// namespaces of their own and run at the same time; tests that break something that all
// share run before them, alone.
//
// A failed test leaves a folder of artifacts in .bin/e2e. Flags after -args keep the
// cluster (-keep), use it again (-reuse), and name node image, image and artifacts folder.
package e2e

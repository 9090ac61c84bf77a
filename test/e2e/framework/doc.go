// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package framework sets up what the end-to-end tests share, and lets them act as the
// people do who install and use the chart.
//
// A [Suite] is a kind cluster, a test tailnet that listens on the gateway of the
// cluster's network (so that pods reach it), the image of tailhelm on every node, and
// three client devices: a user with a grant, a user without, and a tagged machine. A
// [Client] is a real tailscaled in userspace mode, with the tailscale and kubectl
// programs that use it. A [Release] is the chart, installed with the helm program.
//
// When a test has failed, its release leaves a folder of artifacts: see
// [Release.WriteArtifacts].
package framework

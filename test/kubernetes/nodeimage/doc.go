// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Command nodeimage builds the image of a kind node for machines that reach a Go module
// proxy and Debian's packages, but no container registry.
//
// It does what "kind build node-image" does, from other sources: Kubernetes, etcd,
// containerd, CoreDNS and the CNI plugins come from pinned Go modules (see package
// binary, whose cache the rest of test/kubernetes shares), the userland and runc from
// Debian, and kind's own files of a node from kind's module. The images of the control
// plane are in it already, as kind's published images have them.
//
//	nodeimage            build the image if the Docker engine lacks it, and print its name
//	nodeimage -name      print its name only
//
// The tag of the image has a hash of everything that goes in, so that a name that the
// engine has is never stale. (Debian's packages are those of the day of the build.)
//
// Two things differ from kind's published images. A node finds out at its start what the
// machine cannot grant, and does without: CAP_SYS_RESOURCE, and cgroup v2. And it has no
// routes to pods on other nodes: who needs them adds them, from the nodes' pod CIDRs.
//
// It needs root (debootstrap) and a running Docker engine.
package main

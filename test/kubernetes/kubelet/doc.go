// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package kubelet stands in for the node agent of Kubernetes, for tests of what goes
// through kube-apiserver to a node: exec, attach, port-forward, logs, cp and debug.
//
// It registers a Node, watches the Pods that are bound to it, and reports them
// running. It serves the API server with the library of real container runtimes
// (k8s.io/cri-streaming), over SPDY and WebSocket, and asks it for its client
// certificate as a real kubelet does. Its own identity is system:node:<name>, with no
// more rights than that has.
//
// # This is no isolation
//
// A "container" is a process of this machine, with the rights of the user who runs the
// test. What a Pod's command or kubectl exec says is run as it stands. Use it with
// Pods that the test wrote, and for nothing else.
//
// # What a container is
//
//   - Images are not looked at. A container runs its command and args; one without a
//     command runs a shell if it has stdin, and sleeps otherwise.
//   - Processes start in the Pod's own folder, which is also HOME; all containers of a
//     Pod share it. It is no root folder: give kubectl cp and exec relative paths.
//   - The environment is PATH and the variables that the container gives by value.
//     Volumes, init containers, probes and restarts do not exist. A container is ready
//     while it runs, and a Pod whose containers have all ended has succeeded or failed.
//   - All Pods share 127.0.0.1. port-forward reaches whatever listens there.
//   - When a Pod is deleted, its processes are killed at once, whatever its grace
//     period. They are found by a variable of their environment, so descendants that
//     left the process group are found too (where there is /proc).
//
// Exit codes, terminals and their size, the end of input and what a vanished client
// does to a command are as with a real kubelet and containerd: exec'd commands go on
// without a client; one that reads sees the end of its input.
package kubelet

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package integration holds the tests of the whole program: tailhelm as a process
// with the race detector, on a real tailnet (see test/tailnet), in front of a real
// kube-apiserver (see test/kubernetes), used by client-go and by kubectl processes
// from devices of that tailnet.
//
// One tailnet, one cluster and one proxy in mode auth are shared by all tests. A
// test makes what it changes for itself: devices with logins of their own, a
// namespace, grants; and, where it breaks something, its own proxy, tailnet or
// cluster. So tests run in parallel, which is itself a test: many callers, each of
// whom must be nobody else.
//
// Tests wait for conditions, never for time. The one deadline that is an assertion
// is the revocation promise, [revocationPromise].
package integration

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package bench measures what the proxy costs, on the real parts: tailhelm as a process, a
// real tailnet (see test/tailnet) and a real kube-apiserver (see test/kubernetes).
//
//	make bench
//
// # What is compared
//
// The same requests go three ways to the same API server:
//
//   - direct: by TCP on loopback;
//   - floor: from a device of the tailnet to another one, which copies bytes to the API
//     server (package passthrough). It is what the tailnet itself costs, whatever the device
//     does with the bytes;
//   - tailhelm: from the same device to tailhelm in mode auth, with all defaults, its access
//     log too. The log's reader is the process of the benchmark, as in a cluster it is a
//     container runtime.
//
// The ways take turns: for each request where one is measured at a time, and else for each
// round of a second or so, in another order each time. So what else the machine does hits
// all of them alike. An iteration of a benchmark is a round of all ways. Of each
// figure the median over the rounds is reported, and that of the ratios of the rounds.
//
// # What is measured
//
//   - BenchmarkGet: the median time of a get of one small ConfigMap, one at a time.
//   - BenchmarkRequests: how many such gets 64 clients get answered in a second, each by
//     its own connection, and the CPU time of the process in the middle for a thousand of
//     them. The API server's and the client's are not in that.
//   - BenchmarkList: how fast a list of 20 MiB comes, uncompressed.
//   - BenchmarkWatches: how much the resident memory of the process in the middle grows
//     with each watch of 500, ten on each connection. Each round has processes of its own,
//     because memory that a process had before would hide what it takes. Go's garbage is in
//     it, as it is when the kernel counts.
//
// Sub-benchmarks are by HTTP version; watches use HTTP/2, as kubectl does. Names of metrics
// are "way-figure" and "tailhelm/way-figure" for ratios. Ratios of time, CPU and memory are
// better when lower, those of rates when higher.
//
// # What the figures mean
//
// The ratios are what to look at, and to compare between versions of this program on one
// machine. Absolute figures are of a machine on which the client, the tailnet, the proxy,
// the API server and etcd share the cores. For rates that means that CPU which the client
// or the API server takes is missing to the proxy: they are those of the whole, not of the
// proxy alone. The network is loopback: a real one adds the same time to floor and tailhelm,
// which brings their ratio closer to 1.
//
// A client of direct and floor authenticates with a ServiceAccount's token. tailhelm's
// requests come with such a token and are impersonated, and what the API server does for
// that is in the figures of tailhelm: it is part of the price. Direct and floor have TLS
// once, between client and API server, and tailhelm twice, on both sides of it. Priority
// and fairness of the API server is off, because it would give the users of these ways
// different shares.
//
// No figure is asserted. A benchmark fails when a request does, not when it is slow.
package bench

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package tailhelm builds the program of this repository and runs it as a process,
// for tests and the demo.
//
// [Start] runs it with given arguments and environment. [PodOf] takes both from
// the pod template of a Deployment, so that what the chart renders is what runs:
// there is no kubelet, so the package does a kubelet's part for the few kinds of
// variables and volumes that the chart uses, and errs on any other. [StartNode] does
// so for all Pods of a namespace that controllers make, for as long as they exist.
package tailhelm

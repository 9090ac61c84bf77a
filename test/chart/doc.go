// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package chart tests the Helm chart from the outside: values.yaml, its schema and the
// templates agree; the files of values-examples render as recorded, and are installed,
// upgraded and uninstalled with helm on a real API server; RBAC allows what it must, and
// nothing on a list of what it must not. The operator's ServiceAccount makes the objects of
// ProxyGroups and Recorders from the folder workloads, and the Job before uninstalling runs with its own.
//
// Templates by themselves are tested in charts/tailscale-operator/tests, with
// helm-unittest. What the tests compare with is written anew by
//
//	go test ./test/chart -update
package chart

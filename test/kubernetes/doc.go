// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package kubernetes runs a real Kubernetes control plane for tests.
package kubernetes

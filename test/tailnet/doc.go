// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package tailnet is a tailnet in a process, for tests.
package tailnet

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package tailnet

import "os/exec"

// dieWithParent does nothing: only Linux can tie a process to its parent.
func dieWithParent(*exec.Cmd) {}

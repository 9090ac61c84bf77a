// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package process

import "syscall"

// dieWithParent asks the kernel to kill the child when the thread that forks it ends.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package process runs child processes that do not outlive this one.
//
// A test can end in ways that run no cleanup: a panic, a timeout, SIGKILL. On Linux
// the kernel then ends the children (PR_SET_PDEATHSIG). The kernel's idea of a
// parent is the thread that forked, not the process. Go may end a thread at any
// time, for one because a goroutine that locked it returned, and that would kill
// every child that happened to be forked there. So one goroutine, locked to a thread
// that it never gives up, forks all children.
//
// Only the child itself is covered. Its own children are ended by [Process.Kill],
// which signals the whole process group, but not if this process is killed; those
// on a terminal get a hangup. Other systems than Linux have no such signal, and
// there a child outlives a parent that is killed.
package process

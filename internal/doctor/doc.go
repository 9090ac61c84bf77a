// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package doctor tries the way from a device of the tailnet to an API server, one step
// after the other, and says of each what it found and what to do.
//
// It changes nothing, sends no credentials, and reads only what any program of the device's
// user can read.
package doctor

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package tailapi is the Tailscale HTTP API as controllers use it: Tailscale
// Services, auth keys and devices.
//
// It wraps Tailscale's client library and adds what a program that runs for months
// needs:
//
//   - Each call ends within half a minute, or when its context does, also while it waits for
//     an access token, however many wait for it.
//   - Credentials are files that are read again when they change, so that they can be
//     rotated; an access token that is refused is not used again.
//   - Errors say what was attempted and what to do about it, and carry what decides
//     when to try again: their [Kind], and how long the API asked to wait.
//   - Deleting what is gone is no error.
//   - A device is deleted only when the tailnet itself says that it is the caller's: see
//     [OwnDevice].
package tailapi

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package cli is the commands of tailhelm. It reads configuration (environment
// and flags), refuses what is wrong with it before anything is joined, and wires
// the other packages together. It holds no logic of its own.
//
// Configuration that is wrong ends the process at once with one line that names
// the setting, its value and what is allowed, and exit status 2. Whatever can mend
// itself (the tailnet, the API server, a certificate) never ends it: /readyz says
// what is missing.
package cli

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package health answers /livez and /readyz in the format of Kubernetes' own
// components, but with the reason of each failed check: what keeps a proxy from
// serving is what the person at the console needs to know, and the port is the
// pod's, never the tailnet's. What still works and will not for long is a warning: it
// leaves the process ready, and shows in the same place.
package health

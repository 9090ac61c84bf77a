// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package identity says who a caller is to Kubernetes.
//
// It turns Tailscale's answer to "who is at this address" (WhoIs) into the user
// and groups that a request to the Kubernetes API server impersonates:
//
//	caller                    user                  groups
//	user's device             login name            groups of its grants
//	tagged device, granted    node name (FQDN)      groups of its grants
//	tagged device, no grant   node name (FQDN)      its tags
//
// Grants are the values of the peer capability [Capability] in the tailnet
// policy; [LegacyCapability] counts only when there is none under the new name.
//
// # Doubt refuses
//
// The package is pure: it opens no connection, reads no clock and no header.
// Whatever it cannot read with certainty it refuses, and each refusal is a typed
// error, so that the caller can be told what to change. A grant that is malformed
// in one place makes the whole answer an error: acting on the readable half could
// give a caller fewer groups than the policy's author wrote, and RBAC bindings to
// the user name alone would still let the request through.
//
// Names are never rewritten. A login name or group that cannot be carried in an
// HTTP header byte for byte is refused instead of being trimmed or escaped,
// because a trimmed name is another name.
package identity

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package controller keeps ProxyGroups, Recorders and ProxyClasses true: it makes the objects
// of a group or recorder in the cluster and in the tailnet, repairs them, tells what is
// missing, and leaves nothing behind.
//
// # Parents and fleets
//
// A ProxyGroup and a Recorder are parents: they have replicas, each a device of the
// tailnet. What that takes is the same for both and is the fleet's: auth keys, state, notes
// of devices, objects from templates, deletion. A pass adds what only one kind has: the
// Tailscale Service of a group, the limits of a recorder. What is said of groups below
// holds for both.
//
// # How a group is kept
//
// A pass over a group reads everything it decides by from the API server itself: the
// group, its Secrets and its pods. Watches only say when to look. So a stale cache can
// mint no second auth key and lose no note.
//
// What the controller makes in the tailnet (the Tailscale Service, devices) is noted in
// the group's status before it is made, and the note is removed when it is seen gone.
// Renaming, scaling down and deletion all work off these notes: what is noted and not
// wanted is deleted. Deletion depends on nothing else, so it works whatever was lost
// before.
//
// The Tailscale Service is looked at when the group changes, when replicas say that
// they are no hosts of it, and every few minutes: that is how soon a change in the
// admin console is repaired.
//
// # Whose a Service is
//
// The Service's annotation names its owner: the cluster (by the UID of its namespace
// kube-system, which no state of the operator can lose) and the group. Another's
// Service is not touched, and a group whose Service is another's stops its replicas:
// two clusters must never answer on one name.
//
// # Errors
//
// A call of the Tailscale API that fails is a condition with the fix in its message.
// When to try again depends on the kind of error. A group that serves goes on serving:
// nothing that runs depends on the API. An error here never ends the process.
package controller

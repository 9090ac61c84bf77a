// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package recorder receives recordings of sessions and keeps them as files.
//
// It speaks both versions of the protocol in which Tailscale's programs send
// recordings (asciicast of version 2): POST /v2/record over HTTP/2, acknowledged on the
// way, and POST /record, answered at the end. POST /v2/event takes an event, a JSON
// object. [Handler] serves them, [Store] keeps them.
//
// # Promises
//
//   - An acknowledgement means that the bytes are on the disk: they were synced before,
//     and so were the folders that lead to them.
//   - Only devices with one of the allowed tags can send anything, by what the tailnet
//     says of their address. Nothing can be read or changed over the tailnet. What somebody sends
//     can push out older recordings for space, but none younger than [Limits.AtLeast].
//   - The sender's name for itself is in the recording; the folder is the name that the
//     tailnet gives the device. What a sender chooses never becomes part of a path.
//   - A recording that is not whole is told apart for good: its file ends with .part. It
//     is kept like the others.
//   - What does not fit is refused, so that the sender can refuse the session: a full
//     disk, as much as all may have and none of it old enough to go, as many recordings as
//     may be open, a recording that is larger than allowed.
//   - One device can have a quarter of the recordings that may be open, and a few events
//     under way. What does not begin, or come, in bounded time gives its place back.
//   - The oldest recordings are deleted when they are too old or all of them too many.
//     One that is being made is never deleted. A clock that is set makes none old.
//
// # Trade-offs
//
// Events are synced one by one, so the disk decides how many come through in a second.
//
// There is no database: the first line of each file says whose session it is, and
// listing reads those. The files are as good as the file system that they are on;
// replication and encryption at rest are left to it.
package recorder

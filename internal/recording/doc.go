// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package recording records sessions with pods (exec and attach) while they pass,
// and sends them to a recorder.
//
// # What it does
//
// [Recorders] connects to the first recorder of a list that answers, by Tailscale's
// protocol for recorders: version 2 over HTTP/2 without TLS, or version 1. [Recording]
// is such a connection, whose recorder has the first line: who, and what command.
// [Recording.Tap] puts it between the API server and a client: the tap reads SPDY/3.1 or
// WebSocket frames as they pass and changes none of them.
// What the pod says (standard output and standard error, as one) and each size of the
// terminal become an asciicast of version 2, as Tailscale's recorder expects it. What
// the client types is not recorded; what a terminal echoes of it is output.
//
// Events, one for each request, go the same way: [Recorders.SendEvent],
// [Recorders.OfferEvent].
//
// # Promises
//
//   - The recorder has acknowledged the first line of an enforced recording before there is
//     a [Recording], in version 2 of the protocol. It stays there whatever comes of the
//     session.
//   - Output is taken into the recording before the client gets it. A pod that says more
//     than the recorder takes is slowed down. What is held for a recorder is bounded
//     ([queueLimit]), and so is what is kept of a frame: frames of any size pass.
//   - A recording that must be made (enforced) ends its session when it cannot go on:
//     the recorder is lost or stalls, or something passes that cannot be read. Neither
//     the client nor the pod gets what could not be recorded, and the client is told
//     why, in the session's own error stream.
//   - A recording that need not be made never ends or changes a session. While its
//     recorder stalls, output waits for [lenientStall] at most, once.
//   - A client cannot rename a stream to hide it, and compressed headers cannot fill the
//     memory: SPDY's headers are read by the library with which Kubernetes reads them,
//     within limits.
//
// # Trade-offs
//
// The client of the protocol is our own: that of tailscale.com/sessionrecording keeps a
// goroutine for each recording that a recorder refuses. An acknowledgement says that the
// recorder has bytes; it does not say when they are safe, and recorders differ in how
// often they send one. So only the first line waits for it, and output does not: when a
// recorder is lost, the last moments may be missing from the recording: what was queued or
// on its way.
//
// The first line has the size of a terminal, by the format, and is sent before there is a
// client to tell it. So it says 80x24, and the size is the first event, before any output.
// A player that does not know the format's event for that shows the session in 80x24.
//
// An asciicast is text. Bytes that are not UTF-8 are recorded as U+FFFD.
package recording

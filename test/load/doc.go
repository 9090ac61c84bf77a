// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package load is a client that never stops: it asks an API server at a steady rate,
// holds watches and a stream, and says what became of them. Tests run it while they
// replace what is between it and the API server.
//
// It is made of what people and controllers use: client-go's clients with their own
// retries, RetryWatchers, and a kubectl process. What client-go tried again counts as
// retried, not as failed; the figures name both.
//
// Of the requests, half have a connection of their own. A quarter share the one on which
// the watches are, and a quarter one that is idle between them. One in five writes:
// client-go does not try writes again when their connection breaks, and each of them is
// an event that every watch has to see.
package load

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package limit keeps one peer from taking what belongs to all: connections
// ([Listener]), places for what is under way ([Slots]), time for bodies that nobody
// wants ([Upload]), and lines of the log ([Warning]).
//
// Limits are for each peer first. A limit for all alone would let one peer that
// reaches it shut out the others, which is what it should prevent.
package limit

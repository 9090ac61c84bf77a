// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package image tests what "make images" writes: the same bytes from another folder, for
// each architecture a static program and certificates and nothing else, and no root.
// Whether the image works is for test/e2e.
package image

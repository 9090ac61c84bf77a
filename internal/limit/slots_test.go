// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"context"
	"errors"
	"testing"
)

// Slots are bounded for a peer and for all, and what nobody uses is forgotten.
func TestSlots(t *testing.T) {
	s := NewSlots(3, 2)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	var releases []func()
	for i, peer := range []string{"a", "a", "b"} {
		release, err := s.Acquire(t.Context(), peer)
		if err != nil {
			t.Fatalf("slot %d: %v", i, err)
		}
		releases = append(releases, release)
	}
	for _, peer := range []string{"a", "b", "c"} {
		if _, err := s.Acquire(ended, peer); !errors.Is(err, context.Canceled) {
			t.Errorf("one more of %s: %v", peer, err)
		}
		if _, ok := s.TryAcquire(peer); ok {
			t.Errorf("one more of %s without waiting", peer)
		}
	}
	waits := make(chan error)
	go func() {
		release, err := s.Acquire(t.Context(), "a")
		if err == nil {
			release()
		}
		waits <- err
	}()
	releases[0]()
	if err := <-waits; err != nil {
		t.Errorf("who waited: %v", err)
	}
	release, ok := s.TryAcquire("a")
	if !ok {
		t.Fatal("a free slot is not given")
	}
	release()
	releases[1]()
	releases[2]()
	if len(s.peers) > 0 || len(s.all) > 0 {
		t.Errorf("left are %v, %d", s.peers, len(s.all))
	}
}

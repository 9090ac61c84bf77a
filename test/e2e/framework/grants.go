// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"slices"
	"sync"
	"testing"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

// grants are those of the tailnet. Tests that run at the same time each have some of their own.
type grants struct {
	mu  sync.Mutex
	all []*tailnet.Grant
}

// Grant adds a grant to the tailnet's, until the test ends.
func (s *Suite) Grant(t *testing.T, g tailnet.Grant) {
	t.Helper()
	if err := s.grants.change(s.Tailnet, func(all []*tailnet.Grant) []*tailnet.Grant { return append(all, &g) }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := s.grants.change(s.Tailnet, func(all []*tailnet.Grant) []*tailnet.Grant {
			return slices.DeleteFunc(all, func(one *tailnet.Grant) bool { return one == &g })
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func (gs *grants) change(to *tailnet.Tailnet, change func([]*tailnet.Grant) []*tailnet.Grant) error {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	gs.all = change(gs.all)
	set := make([]tailnet.Grant, len(gs.all))
	for i, g := range gs.all {
		set[i] = *g
	}
	return to.SetGrants(set...)
}

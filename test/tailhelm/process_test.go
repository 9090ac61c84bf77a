// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailhelm_test

import (
	"context"
	"testing"
	"time"

	"github.com/tailhelm/tailhelm/test/tailhelm"
)

// A program can log lines of any length, and the last one needs no end.
func TestLongLines(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p, err := tailhelm.Start(ctx, tailhelm.Command{Path: "/bin/sh", Args: []string{"-c", `printf "%8000000d\n\nlast" 0 >&2`}})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(ctx); code != 0 || err != nil {
		t.Errorf("it ends with %d, %v", code, err)
	}
	lines := p.Log()
	if len(lines) != 3 || len(lines[0]) != 8_000_000 || lines[1] != "" || lines[2] != "last" {
		t.Errorf("%d lines", len(lines))
	}
}

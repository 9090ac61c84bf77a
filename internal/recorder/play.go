// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxLine bounds a line of a recording that is played: more than what a recorder is
// sent at a time.
const maxLine = 16 << 20

// PlayOptions say how a recording is played.
type PlayOptions struct {
	// Speed is how many times as fast as the session it is played; 0 means at once.
	Speed float64
	// Idle is how long a pause gets at most; 0 means as long as it was.
	Idle time.Duration
}

// Play writes what a recorded session said, in its own time. It ends with ctx.
func Play(ctx context.Context, w io.Writer, recording io.Reader, o PlayOptions) error {
	lines := bufio.NewScanner(recording)
	lines.Buffer(make([]byte, bufferSize), maxLine)
	if !lines.Scan() {
		return errors.Join(ErrMalformed, lines.Err())
	}
	if _, err := parseHeader(lines.Bytes()); err != nil {
		return err
	}
	last := 0.0
	for n := 2; lines.Scan(); n++ {
		var at float64
		var kind, text string
		if err := json.Unmarshal(lines.Bytes(), &[]any{&at, &kind, &text}); err != nil {
			return fmt.Errorf("line %d of the recording: %w", n, err)
		}
		if kind != "o" {
			continue
		}
		if err := o.pause(ctx, at-last); err != nil {
			return err
		}
		last = at
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading the recording: %w", err)
	}
	return nil
}

// pause waits as long as the session did.
func (o PlayOptions) pause(ctx context.Context, seconds float64) error {
	if o.Speed <= 0 {
		return ctx.Err()
	}
	d := time.Duration(seconds * float64(time.Second))
	if o.Idle > 0 {
		d = min(d, o.Idle)
	}
	timer := time.NewTimer(time.Duration(float64(d) / o.Speed))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

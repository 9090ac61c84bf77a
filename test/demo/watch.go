// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"time"
)

// watch is a kubectl that watches configmaps while the scenes are played.
type watch struct {
	actor  string
	args   []string
	cancel context.CancelFunc // ends kubectl
	lines  <-chan string      // what kubectl prints; closed at its end
	seen   []string
}

// openWatch starts a watch of an actor's and returns when its first event, of an
// object that exists, has arrived.
func (s *stage) openWatch(ctx context.Context, actor string) (*watch, error) {
	w := &watch{actor: actor, args: []string{"get", "configmaps", "--watch", "--output-watch-events"}}
	ctx, w.cancel = context.WithCancel(ctx)
	cmd := s.as(ctx, actor, w.args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := make(chan string)
	w.lines = lines
	go func() {
		defer close(lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			select {
			case lines <- scanner.Text():
			case <-ctx.Done():
			}
		}
		_ = cmd.Wait() // it is killed in the end
	}()
	if !w.sees(ctx, "ADDED", "kube-root-ca.crt") {
		w.cancel()
		return nil, fmt.Errorf("%w: %s's watch says %q", errUnexpected, actor, w.seen)
	}
	return w, nil
}

// sees reads events until one holds all words, and reports whether one did.
func (w *watch) sees(ctx context.Context, words ...string) bool {
	ctx, cancel := context.WithTimeout(ctx, sceneTimeout)
	defer cancel()
	for {
		select {
		case line, ok := <-w.lines:
			if !ok {
				return false
			}
			w.seen = append(w.seen, line)
			if containsAll(line, words) {
				return true
			}
		case <-ctx.Done():
			return false
		}
	}
}

// ends waits for the events of the scenes, prints what the watch printed, ends it
// and reports whether they arrived.
func (w *watch) ends(ctx context.Context) bool {
	ok := w.sees(ctx, "ADDED", "greeting") && w.sees(ctx, "DELETED", "greeting")
	w.cancel()
	show(w.actor, w.args, strings.Join(w.seen, "\n"), ok)
	return ok
}

func containsAll(s string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(s, word) {
			return false
		}
	}
	return true
}

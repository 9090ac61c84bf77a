// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"
)

const (
	// maxSkew is how far the clock may be set while the recorder runs, before it counts for
	// nothing.
	maxSkew = time.Hour
	// pruneInterval is how often recordings are looked through for what is too old.
	pruneInterval = time.Minute
)

// Why a file was deleted, in logs and metrics.
const (
	reasonAge   = "age"
	reasonSpace = "space"
)

// Run deletes what is too old or too much, until ctx is done.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(pruneInterval)
	defer tick.Stop()
	for {
		if err := s.prune(ctx); err != nil {
			s.log.WarnContext(ctx, "deleting old recordings", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// prune deletes what is too old, and then the oldest while there is too much, but for what
// is too young to go for space.
func (s *Store) prune(ctx context.Context) error {
	if wrong := !s.knowsTime(); wrong != s.wrong {
		s.wrong = wrong
		s.log.WarnContext(ctx, "the clock was set: while it is off, no recording counts as old; restart the recorder if it is right now", "by", s.skew(), "off", wrong)
	}
	_, before := s.usage()
	files, err := s.files()
	if err != nil {
		return err
	}
	var used int64
	for _, f := range files {
		used += onDisk(f.size)
	}
	// What others have deleted or added is seen here alone. What is written meanwhile is
	// counted by those who write, and twice or not at all until the next look.
	s.mu.Lock()
	s.used += used - before
	s.mu.Unlock()
	var errs []error
	var oldest time.Time
	var deletable int64
	for _, f := range files {
		if s.isOpen(f.path) {
			continue
		}
		age := s.age(f.at)
		old := s.limits.Age > 0 && age > s.limits.Age
		much := s.limits.Total > 0 && used > s.limits.Total && age >= s.limits.AtLeast
		if !old && !much {
			if oldest.IsZero() {
				oldest = f.at
			}
			if age >= s.limits.AtLeast {
				deletable += onDisk(f.size)
			}
			continue
		}
		if err := s.remove(ctx, f, old); err != nil {
			errs = append(errs, err)
			continue
		}
		used -= onDisk(f.size)
	}
	s.mu.Lock()
	s.oldest, s.deletable = oldest, deletable
	s.mu.Unlock()
	return errors.Join(errs...)
}

// remove deletes a file because it is old, or else for space.
func (s *Store) remove(ctx context.Context, f stored, old bool) error {
	s.appending.Lock() // an event is not written to what is removed
	err := os.Remove(f.path)
	s.appending.Unlock()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.used -= onDisk(f.size)
	s.mu.Unlock()
	count, level, reason := &s.aged, slog.LevelInfo, reasonAge
	if !old {
		count, level, reason = &s.crowded, slog.LevelWarn, reasonSpace
	}
	count.Add(1)
	s.log.Log(ctx, level, "deleted a recording", "file", f.path, "bytes", f.size, "last_write", f.at.UTC(), "reason", reason)
	return nil
}

func (s *Store) isOpen(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.open[path]
	return ok
}

// age returns how old a file is by its last write. A clock that was set to another day must
// not make everything old: then nothing is.
func (s *Store) age(at time.Time) time.Duration {
	if !s.knowsTime() {
		return 0
	}
	return s.now().Sub(at)
}

// knowsTime reports whether the clock went on as it should since the start.
func (s *Store) knowsTime() bool { return s.skew().Abs() <= maxSkew }

// skew returns how far the clock was set since the start.
func (s *Store) skew() time.Duration { return s.now().Round(0).Sub(s.began) - s.ran() }

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"context"
	"fmt"
	"syscall"
	"time"
)

const (
	// blockSize is what files take on the disk, rounded up; each takes another for its name.
	blockSize = 4 << 10
	// minInodes is how many files must fit besides, where the file system bounds them.
	minInodes = 1000
	// nearlyFull is how many percent of all that recordings may take those that must stay take
	// when there is a warning.
	nearlyFull = 85
)

// onDisk returns what a file of a size takes. Many small ones take more than is in them.
func onDisk(size int64) int64 { return (size+blockSize-1)/blockSize*blockSize + blockSize }

// freeBytes returns how many bytes can be written to the file system of dir: none when there
// is no room for their names.
func freeBytes(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("the file system of %s: %w", dir, err)
	}
	return freeOf(st), nil
}

func freeOf(st syscall.Statfs_t) int64 {
	if st.Files > 0 && st.Ffree < minInodes { // some file systems have no bound, and say 0
		return 0
	}
	return int64(st.Bavail) * st.Bsize //nolint:gosec // a disk
}

// usage returns how many recordings are open, and what all take.
func (s *Store) usage() (open int, used int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open), s.used
}

// Ready returns why no recording would be taken now, or nil.
func (s *Store) Ready(context.Context) error {
	if open, _ := s.usage(); s.limits.Open > 0 && open >= s.limits.Open {
		return fmt.Errorf("%w: %d", ErrTooMany, open)
	}
	return s.hasRoom()
}

// hasRoom returns why nothing can be kept now, or nil.
func (s *Store) hasRoom() error {
	free, err := s.free(s.dir)
	if err != nil {
		return err
	}
	if free == 0 {
		return fmt.Errorf("%w: no byte is free on the file system of %s, or fewer than %d inodes", ErrFull, s.dir, minInodes)
	}
	if free < s.limits.Free {
		return fmt.Errorf("%w: %d bytes are free on the file system of %s, of which %d are left alone", ErrFull, free, s.dir, s.limits.Free)
	}
	return s.hasSpace()
}

// hasSpace returns why nothing can be deleted for another recording, or nil.
func (s *Store) hasSpace() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limits.Total == 0 || s.limits.AtLeast == 0 || s.used <= s.limits.Total {
		return nil
	}
	if !s.oldest.IsZero() && s.age(s.oldest) >= s.limits.AtLeast {
		return nil // it is about to be deleted
	}
	why := fmt.Sprintf("none that has ended is older than %s, before which none is deleted for space", s.limits.AtLeast)
	if !s.knowsTime() {
		why = "how old they are is not known, because the clock was set by " + s.skew().String()
	}
	return fmt.Errorf("%w: all recordings take %d bytes, of %d, and %s", ErrFull, s.used, s.limits.Total, why)
}

// protected returns what the recordings take that are too young to be deleted for space.
func (s *Store) protected() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limits.AtLeast == 0 {
		return 0
	}
	return max(0, s.used-s.deletable)
}

// Warning returns nil, or why further recordings will be refused unless somebody sees to it:
// the clock was set, so that none counts as old, or most of what recordings may take is of
// those that must stay.
func (s *Store) Warning(context.Context) error {
	if !s.knowsTime() {
		return fmt.Errorf("the clock was set by %s since the start, so that no recording counts as old enough to be deleted: restart the recorder if the clock is right now", s.skew().Round(time.Hour))
	}
	protected := s.protected()
	if s.limits.Total == 0 || protected*100 <= s.limits.Total*nearlyFull {
		return nil
	}
	return fmt.Errorf("recordings younger than %s, which are not deleted for space, take %d of %d bytes: when they take all, recordings are refused. Give them more space, or keep them for less time",
		s.limits.AtLeast, protected, s.limits.Total)
}

// oldestWrite returns the last write to the oldest recording that has ended, or zero.
func (s *Store) oldestWrite() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.oldest
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// whole and part end the names of recordings: those that have ended as they should,
	// and others.
	whole = ".cast"
	part  = ".cast.part"
	// nameTime begins the names of recordings.
	nameTime = "20060102T150405.000Z"
)

// Errors that refuse a recording. Their text is for the sender.
var (
	ErrFull      = errors.New("the disk of the recorder is full")
	ErrTooMany   = errors.New("the recorder has as many recordings open as it may have")
	ErrTooLarge  = errors.New("the recording is larger than the recorder allows")
	ErrSlow      = errors.New("the sender is too slow")
	ErrMalformed = errors.New("this is no asciicast of version 2")
)

// Limits bound what a [Store] keeps. 0 means no limit.
type Limits struct {
	// Age is how old a recording gets.
	Age time.Duration
	// Total is how many bytes all recordings and events may take on the disk. The oldest go first.
	Total int64
	// AtLeast is how long a recording stays however many there are. Else who can send, or
	// do what is recorded, could push out what was recorded before.
	AtLeast time.Duration
	// Recording is how many bytes one recording may have.
	Recording int64
	// Free is how many bytes of the file system are left alone.
	Free int64
	// Open is how many recordings may be open at a time. A device may have a quarter of them.
	Open int
}

// openPerDevice is how many recordings one device may have open. One that was taken over
// leaves room for the others.
func (l Limits) openPerDevice() int { return max(1, l.Open/4) }

// Store keeps recordings in a folder: <dir>/<device>/<time>-<random>.cast.
type Store struct {
	dir    string
	limits Limits
	log    *slog.Logger
	now    func() time.Time
	began  time.Time            // by the clock, which can be set
	ran    func() time.Duration // since then, however the clock was set
	wrong  bool                 // the log has that the clock was set; of prune
	free   func(dir string) (int64, error)

	// syncDir makes the names in a folder last.
	syncDir func(dir string) error

	appending sync.Mutex        // of events
	lasting   map[string]string // the files of events whose names last, by their folders

	folders sync.Mutex      // while one is made
	made    map[string]bool // the folders whose names last

	mu   sync.Mutex
	open map[string]string // the folders of recordings that are being made, by their paths
	used int64             // what all recordings take on the disk, those that are open included
	// oldest is the last write to the oldest recording that has ended, or zero.
	oldest time.Time
	// deletable is what those take that were old enough to go for space when that was last
	// looked at. The rest of used must stay.
	deletable int64

	aged, crowded atomic.Int64 // how many files were deleted for their age, and for space
}

// NewStore returns a Store of what is in dir, which must exist.
func NewStore(dir string, limits Limits, log *slog.Logger) (*Store, error) {
	began := time.Now()
	s := &Store{dir: dir, limits: limits, log: log, now: time.Now, began: began.Round(0), ran: func() time.Duration { return time.Since(began) }, free: freeBytes, syncDir: syncDir, lasting: map[string]string{}, made: map[string]bool{}, open: map[string]string{}}
	probe, err := os.CreateTemp(dir, ".probe-")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(probe.Close(), os.Remove(probe.Name())); err != nil {
		return nil, err
	}
	files, err := s.files()
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		s.used += onDisk(f.size)
		if s.age(f.at) >= limits.AtLeast {
			s.deletable += onDisk(f.size)
		}
	}
	if len(files) > 0 {
		s.oldest = files[0].at
	}
	return s, nil
}

// create begins a recording of a device.
func (s *Store) create(device string) (*file, error) {
	if err := s.hasRoom(); err != nil {
		return nil, err
	}
	dir, err := s.folder(device)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, s.now().UTC().Format(nameTime)+"-"+strings.ToLower(rand.Text()[:8]))
	if err := s.reserve(dir, path); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path+part, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) //nolint:gosec // of safeName
	if err != nil {
		s.release(path, 0)
		return nil, err
	}
	made := &file{store: s, File: f, path: path}
	if err := s.syncDir(dir); err != nil { // what is acknowledged can be found after a crash
		return nil, errors.Join(err, made.end(false))
	}
	return made, nil
}

// folder returns the folder of a device, whose name lasts.
func (s *Store) folder(device string) (string, error) {
	dir := filepath.Join(s.dir, safeName(device))
	s.folders.Lock()
	defer s.folders.Unlock()
	err := os.Mkdir(dir, 0o700) //nolint:gosec // of safeName
	if errors.Is(err, fs.ErrExist) && s.made[dir] {
		return dir, nil
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	s.made[dir] = false
	if err := s.syncDir(s.dir); err != nil {
		return "", err
	}
	s.made[dir] = true
	return dir, nil
}

// reserve takes a place for a recording.
func (s *Store) reserve(dir, path string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mayOpen(dir); err != nil {
		return err
	}
	s.open[path+part] = dir
	s.used += onDisk(0)
	return nil
}

// release gives the place of a recording of a size back. Of one without bytes there is
// nothing left.
func (s *Store) release(path string, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, path+part)
	if size == 0 {
		s.used -= onDisk(0)
	}
}

// mayOpen returns why a device, which has the folder dir, may not begin another recording,
// or nil. s.mu is held.
func (s *Store) mayOpen(dir string) error {
	if s.limits.Open == 0 {
		return nil
	}
	if len(s.open) >= s.limits.Open {
		return ErrTooMany
	}
	n := 0
	for _, of := range s.open {
		if of == dir {
			n++
		}
	}
	if n >= s.limits.openPerDevice() {
		return fmt.Errorf("%w of one device: %d", ErrTooMany, n)
	}
	return nil
}

// safeName returns a name as that of a folder, in which nothing but letters, digits,
// '-' and '.' count, and which is no other folder's.
func safeName(name string) string {
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '.':
			return r
		}
		return '_'
	}, name)
	if name = strings.Trim(name, "."); name == "" {
		return "_"
	}
	return name[:min(len(name), 253)]
}

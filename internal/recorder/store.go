// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"tailscale.com/sessionrecording"
)

const (
	// whole and part end the names of recordings: those that have ended as they should,
	// and others.
	whole = ".cast"
	part  = ".cast.part"
	// maxHeader bounds the first line of a recording.
	maxHeader = 64 << 10
	// nameTime begins the names of recordings.
	nameTime = "20060102T150405.000Z"
	// blockSize is what files take on the disk, rounded up; each takes another for its name.
	blockSize = 4 << 10
	// minInodes is how many files must fit besides, where the file system bounds them.
	minInodes = 1000
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
	}
	if len(files) > 0 {
		s.oldest = files[0].at
	}
	return s, nil
}

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

// file is a recording that is being made. One goroutine writes; another may sync.
type file struct {
	store *Store
	*os.File
	path string // without its ending

	mu      sync.Mutex
	size    int64
	head    []byte // the first line, until it is complete
	checked bool
}

// Write appends to the recording. It errs with ErrTooLarge, ErrMalformed or ErrFull.
func (f *file) Write(p []byte) (int, error) {
	if limit := f.store.limits.Recording; limit > 0 && f.written()+int64(len(p)) > limit {
		return 0, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
	}
	if err := f.check(p); err != nil {
		return 0, err
	}
	n, err := f.File.Write(p)
	f.mu.Lock()
	before := f.size
	f.size += int64(n)
	after := f.size
	f.mu.Unlock()
	f.store.mu.Lock()
	f.store.used += onDisk(after) - onDisk(before)
	f.store.mu.Unlock()
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = ErrFull
	}
	return n, err
}

// check checks the first line as it comes.
func (f *file) check(p []byte) error {
	if f.checked {
		return nil
	}
	line, _, ended := strings.Cut(string(p), "\n")
	f.head = append(f.head, line...)
	if len(f.head) > maxHeader {
		return fmt.Errorf("%w: its first line is longer than %d bytes", ErrMalformed, maxHeader)
	}
	if !ended {
		return nil
	}
	if _, err := parseHeader(f.head); err != nil {
		return err
	}
	f.checked, f.head = true, nil
	return nil
}

func parseHeader(line []byte) (h sessionrecording.CastHeader, err error) {
	if err := json.Unmarshal(line, &h); err != nil {
		return h, fmt.Errorf("%w: its first line is no header: %w", ErrMalformed, err)
	}
	if h.Version != 2 {
		return h, fmt.Errorf("%w: its version is %d", ErrMalformed, h.Version)
	}
	return h, nil
}

// written returns how many bytes were written.
func (f *file) written() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size
}

// end ends the recording, whole or not. One of which there is nothing is removed.
func (f *file) end(isWhole bool) error {
	isWhole = isWhole && f.checked
	err := errors.Join(f.Sync(), f.Close())
	switch {
	case f.size == 0:
		err = errors.Join(err, os.Remove(f.path+part)) //nolint:gosec // of safeName
	case isWhole && err == nil:
		err = os.Rename(f.path+part, f.path+whole) //nolint:gosec // of safeName
	}
	f.store.release(f.path, f.size)
	return errors.Join(err, f.store.syncDir(filepath.Dir(f.path)))
}

// syncDir syncs a folder.
func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // of safeName
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// stored is a recording in the folder.
type stored struct {
	path string
	size int64
	at   time.Time // of the last write
}

// files returns all recordings and events, the oldest first.
func (s *Store) files() ([]stored, error) { return filesIn(s.dir, whole, part, events) }

// lostAndFound is a folder of the file system's own, at the root of a volume. Only root may
// look into it; no device's folder has the name, because of safeName.
const lostAndFound = "lost+found"

// filesIn returns the files below dir whose names have one of the endings.
func filesIn(dir string, endings ...string) ([]stored, error) {
	var all []stored
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && path == filepath.Join(dir, lostAndFound) {
			return fs.SkipDir
		}
		if err != nil || entry.IsDir() || !slices.ContainsFunc(endings, func(e string) bool { return strings.HasSuffix(path, e) }) {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // pruned meanwhile
		}
		if err != nil {
			return err
		}
		all = append(all, stored{path: path, size: info.Size(), at: info.ModTime()})
		return nil
	})
	slices.SortFunc(all, func(a, b stored) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.path, b.path)) })
	return all, err
}

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
	files, err := s.files()
	if err != nil {
		return err
	}
	var used int64
	for _, f := range files {
		used += onDisk(f.size)
	}
	var errs []error
	var oldest time.Time
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
			continue
		}
		if err := s.remove(ctx, f, old); err != nil {
			errs = append(errs, err)
			continue
		}
		used -= onDisk(f.size)
	}
	s.mu.Lock()
	s.oldest = oldest
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

// Info is what a recording says about itself.
type Info struct {
	// Path is the recording's file.
	Path string
	// Bytes is its size.
	Bytes int64
	// Whole means that the session has ended, and everything of it was recorded.
	Whole bool
	// Header is its first line. It is zero when that cannot be read.
	Header sessionrecording.CastHeader
}

// List returns the recordings in a folder, the oldest first.
func List(dir string) ([]Info, error) {
	files, err := filesIn(dir, whole, part)
	if err != nil {
		return nil, err
	}
	list := make([]Info, 0, len(files))
	for _, f := range files {
		info := Info{Path: f.path, Bytes: f.size, Whole: strings.HasSuffix(f.path, whole)}
		if h, err := readHeader(f.path); err == nil {
			info.Header = h
		}
		list = append(list, info)
	}
	return list, nil
}

func readHeader(path string) (h sessionrecording.CastHeader, err error) {
	f, err := os.Open(path) //nolint:gosec // of the folder of recordings
	if err != nil {
		return h, err
	}
	defer func() { _ = f.Close() }()
	line, err := bufio.NewReader(io.LimitReader(f, maxHeader+1)).ReadBytes('\n')
	if err != nil {
		return h, err
	}
	return parseHeader(line)
}

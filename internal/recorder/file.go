// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"tailscale.com/sessionrecording"
)

// maxHeader bounds the first line of a recording.
const maxHeader = 64 << 10

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

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// events ends the names of files with events: one JSON object a line, a file a day.
const (
	events  = ".events.jsonl"
	nameDay = "20060102"
)

// appendEvent keeps an event of a device. It returns when that is on the disk.
func (s *Store) appendEvent(device string, line []byte) (err error) {
	if err := s.hasRoom(); err != nil {
		return err
	}
	s.appending.Lock() // a line is written whole
	defer s.appending.Unlock()
	dir, err := s.folder(device)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, s.now().UTC().Format(nameDay)+events)
	_, missing := os.Stat(path)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // of safeName
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	before, err := f.Stat()
	if err != nil {
		return err
	}
	taken := onDisk(before.Size())
	if missing != nil {
		taken = 0
	}
	n, err := f.Write(line)
	if err != nil {
		// What is there of the line would spoil the next one.
		if undone := f.Truncate(before.Size()); undone == nil {
			n = 0
		}
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = ErrFull
		}
	} else {
		err = f.Sync()
	}
	if missing != nil || s.lasting[dir] != path {
		s.lasting[dir] = ""
		if err == nil {
			err = s.syncDir(dir)
		}
		if err == nil {
			s.lasting[dir] = path
		}
	}
	s.mu.Lock()
	s.used += onDisk(before.Size()+int64(n)) - taken
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("keeping an event: %w", err)
	}
	return nil
}

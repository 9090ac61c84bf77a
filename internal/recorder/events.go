// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	// events ends the names of files with events: one JSON object a line, a file a day.
	events  = ".events.jsonl"
	nameDay = "20060102"
	// maxEvent bounds an event. Other proxies put the bodies of requests into theirs.
	maxEvent = 4 << 20
	// eventTimeout is how long an event may wait for others, and how long it may take to come.
	// Senders do not wait longer.
	eventTimeout = 10 * time.Second
	// maxEvents and maxEventsPerDevice bound the events that are held at a time.
	maxEvents          = 64
	maxEventsPerDevice = 8
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

// readEvent reads an event's body, in bounded time.
func (h *Handler) readEvent(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(h.eventTimeout)); err != nil {
		return nil, fmt.Errorf("bounding the time of an event: %w", err)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEvent))
	if err != nil {
		return nil, err
	}
	return body, control.SetReadDeadline(time.Time{})
}

// event keeps an event, and answers when it is on the disk.
func (h *Handler) event(w http.ResponseWriter, r *http.Request) {
	sender, _ := r.Context().Value(senderKey{}).(string)
	waiting, cancel := context.WithTimeout(r.Context(), h.eventTimeout)
	defer cancel()
	release, err := h.events.Acquire(waiting, sender)
	if err != nil {
		h.refuse(w, r, sender, http.StatusServiceUnavailable, errors.New("the recorder has as many events under way as it may have"))
		return
	}
	defer release()
	body, err := h.readEvent(w, r)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		h.refuse(w, r, sender, http.StatusRequestTimeout, fmt.Errorf("%w: the event has not come in %s", ErrSlow, h.eventTimeout))
		return
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		h.refuse(w, r, sender, http.StatusRequestEntityTooLarge, fmt.Errorf("an event has %d bytes at most", maxEvent))
		return
	}
	if err != nil {
		panic(http.ErrAbortHandler) // the sender has gone, and must not take this for kept
	}
	var line bytes.Buffer
	if err := json.Compact(&line, body); err != nil || line.Len() == 0 || line.Bytes()[0] != '{' {
		h.refuse(w, r, sender, http.StatusBadRequest, errors.New("an event is a JSON object"))
		return
	}
	if err := h.config.Store.appendEvent(sender, append(line.Bytes(), '\n')); err != nil {
		h.refuse(w, r, sender, statusOf(err), err)
		return
	}
	h.bytes.Add(float64(line.Len() + 1))
}

// CopyEvents writes the events in a folder to w, as they are, a JSON object a line: day by
// day and device by device, those with the oldest last event first. Events from before since
// are left out, but not those that do not say when they were.
func CopyEvents(w io.Writer, dir string, since time.Time) error {
	files, err := filesIn(dir, events)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.at.Before(since) {
			continue
		}
		if err := copyEvents(w, f.path, since); err != nil && !errors.Is(err, fs.ErrNotExist) { // pruned meanwhile
			return fmt.Errorf("the events in %s: %w", f.path, err)
		}
	}
	return nil
}

func copyEvents(w io.Writer, path string, since time.Time) error {
	f, err := os.Open(path) //nolint:gosec // of the folder of recordings
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewReaderSize(f, bufferSize)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // what is left is of an event that is being written
		}
		if err != nil {
			return err
		}
		var event struct {
			Timestamp int64 `json:"timestamp"` // seconds
		}
		if json.Unmarshal(line, &event) == nil && event.Timestamp != 0 && event.Timestamp < since.Unix() {
			continue
		}
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
}

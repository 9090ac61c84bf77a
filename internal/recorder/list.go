// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"bufio"
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tailscale.com/sessionrecording"
)

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

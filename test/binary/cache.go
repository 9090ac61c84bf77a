// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package binary

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// unused is how long an entry may lie without use before a later build removes it.
const unused = 30 * 24 * time.Hour

// cacheDir is the folder of all programs.
func cacheDir() (string, error) {
	if dir := os.Getenv("TAILHELM_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder for built programs (set TAILHELM_CACHE): %w", err)
	}
	return filepath.Join(dir, "tailhelm"), nil
}

// cached reports whether the program is there, and notes that it is in use.
func cached(dir, bin string) bool {
	now := time.Now()
	// Noted first, so that prune does not remove what is about to be returned. A
	// cache that is read-only serves all the same.
	_ = os.Chtimes(dir, now, now)
	info, err := os.Stat(bin)
	return err == nil && info.Mode().IsRegular()
}

// prune removes entries of the named program, other than keep, that are long
// unused. The caller holds the program's lock. Failing to remove harms nothing.
func prune(cache, name, keep string) {
	dirs, err := filepath.Glob(filepath.Join(cache, name+"-*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		// The key has no hyphen; "etcd-*" must not match "etcd-proxy-<key>".
		if dir == keep || strings.Contains(strings.TrimPrefix(filepath.Base(dir), name+"-"), "-") {
			continue
		}
		if info, err := os.Stat(dir); err == nil && info.IsDir() && time.Since(info.ModTime()) > unused {
			_ = os.RemoveAll(dir)
		}
	}
}

// lock takes the lock of a file and returns what gives it back. It calls waiting
// once if another holds the lock. Locks of a process that dies are free at once.
func lock(ctx context.Context, name string, waiting func()) (func(), error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // The name is ours, below the cache folder.
	if err != nil {
		return nil, err
	}
	// Closing the only descriptor releases the lock; nothing was written to lose.
	unlock := func() { _ = f.Close() }
	switch err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB); {
	case err == nil:
		return unlock, nil
	case !errors.Is(err, syscall.EWOULDBLOCK):
		unlock()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}

	waiting()
	locked := make(chan struct{})
	go func() {
		defer close(locked)
		err = flock(f, syscall.LOCK_EX)
	}()
	select {
	case <-locked:
		if err != nil {
			unlock()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		return unlock, nil
	case <-ctx.Done():
		// flock cannot be called off: whenever it succeeds, give the lock back.
		go func() { <-locked; unlock() }()
		return nil, fmt.Errorf("lock %s: %w", name, context.Cause(ctx))
	}
}

func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

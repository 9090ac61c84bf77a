// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"sync"
	"time"
)

// warnInterval is how long a [warning] keeps silent after a line of the log.
const warnInterval = time.Minute

// warning is something to warn of that can come with every request or connection: a line
// of the log for each would fill the disk. The zero value is ready.
type warning struct {
	mu    sync.Mutex
	next  time.Time // before which there is no line
	count int       // since the last line
}

// occurred notes that it has occurred. It returns how often since the last line if there is
// to be one now, or 0.
func (w *warning) occurred() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count++
	now := time.Now()
	if now.Before(w.next) {
		return 0
	}
	count := w.count
	w.count, w.next = 0, now.Add(warnInterval)
	return count
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"sync"
	"time"
)

// warnInterval is how long a [Warning] keeps silent after a line of the log.
const warnInterval = time.Minute

// Warning is something to warn of that can come with every request or connection: a line
// of the log for each would fill the disk. The zero value is ready.
type Warning struct {
	mu    sync.Mutex
	next  time.Time // before which there is no line
	count int       // since the last line
}

// Occurred notes that it has occurred. It returns how often since the last line if there is
// to be one now, or 0.
func (w *Warning) Occurred() int {
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

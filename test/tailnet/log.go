// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"log"
	"strings"
	"sync"
)

// logSwitch passes logs on until it is switched off. A log method of a test
// must not be called after the test, and nodes log while they end.
type logSwitch struct {
	mu   sync.RWMutex
	logf func(string, ...any) // nil: off
}

func (l *logSwitch) print(format string, args ...any) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.logf != nil {
		l.logf(format, args...)
	}
}

// off returns when nothing is being logged any more.
func (l *logSwitch) off() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.logf = nil
}

// stdLog is a standard logger, which net/http wants, that writes to logf.
func stdLog(logf func(string, ...any)) *log.Logger {
	return log.New(logWriter(logf), "", 0)
}

type logWriter func(string, ...any)

func (w logWriter) Write(b []byte) (int, error) {
	w("%s", strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"fmt"
	"os"
	"sync"
	"time"
)

// logFile takes the log of the tailnet, from several goroutines.
type logFile struct {
	mu   sync.Mutex
	file *os.File
}

func newLogFile(path string) (*logFile, error) {
	f, err := os.Create(path) //nolint:gosec // the path is a flag of the tests
	return &logFile{file: f}, err
}

func (l *logFile) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintf(l.file, time.Now().UTC().Format("15:04:05.000 ")+format+"\n", args...) // a log that is lost fails no test
}

func (l *logFile) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}

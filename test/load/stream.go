// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package load

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

// echoTimeout is how long the stream may take to write back a line.
const echoTimeout = 10 * time.Second

// stream is a process that writes back each line that it reads.
type stream struct {
	cmd    *exec.Cmd
	end    context.CancelFunc
	stdin  io.WriteCloser
	lines  chan string // closed when the process has ended
	said   int
	stderr strings.Builder
}

// openStream begins a stream, if the load has one, in place of the one before.
func (l *Load) openStream(ctx context.Context) error {
	if l.config.Stream == nil {
		return nil
	}
	if l.stream != nil {
		l.stream.close()
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	s := &stream{cmd: l.config.Stream(life), end: end, lines: make(chan string)}
	s.cmd.Stderr = &s.stderr
	s.cmd.WaitDelay = time.Second
	stdin, err := s.cmd.StdinPipe()
	if err != nil {
		end()
		return fmt.Errorf("the load's stream: %w", err)
	}
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		end()
		return fmt.Errorf("the load's stream: %w", err)
	}
	s.stdin = stdin
	if err := s.cmd.Start(); err != nil {
		end()
		return fmt.Errorf("the load's stream: %w", err)
	}
	go s.read(stdout)
	l.stream = s
	if !s.lives(ctx) {
		s.close()
		l.stream = nil
		return fmt.Errorf("the load's stream does not work: %s", s.stderr.String())
	}
	return nil
}

// read passes on what the process writes, until its end.
func (s *stream) read(stdout io.Reader) {
	defer close(s.lines)
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		s.lines <- lines.Text()
	}
}

// lives reports whether the process writes back one more line.
func (s *stream) lives(ctx context.Context) bool {
	s.said++
	line := fmt.Sprint("line ", s.said)
	if _, err := io.WriteString(s.stdin, line+"\n"); err != nil {
		return false
	}
	timer := time.NewTimer(echoTimeout)
	defer timer.Stop()
	select {
	case got, ok := <-s.lines:
		return ok && got == line
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// close ends the process.
func (s *stream) close() {
	s.end()
	for range s.lines {
	}
	_ = s.cmd.Wait() // it was killed
}

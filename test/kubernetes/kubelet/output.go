// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync"
	"time"
)

// The streams of a process, as the parameter "stream" of a request for logs names
// them.
const (
	streamStdout = "Stdout"
	streamStderr = "Stderr"
)

// output is what the main process of a container wrote: kept for logs, and passed on
// to whoever is attached at the time.
type output struct {
	mu       sync.Mutex
	lines    []line
	partial  map[string][]byte // by stream: what came after the last newline
	attached []*attachment
	ended    bool
	changed  chan struct{} // closed and replaced when lines or ended change
}

// line is one line of a log, with its newline.
type line struct {
	time   time.Time
	stream string
	text   []byte
}

// attachment receives output from the moment it was attached. Its writers may be nil.
type attachment struct {
	mu     sync.Mutex
	stdout io.Writer
	stderr io.Writer
}

func newOutput() *output {
	return &output{partial: make(map[string][]byte), changed: make(chan struct{})}
}

// writer takes what the process writes to the named stream. It never fails: a log
// outlives those who listen.
func (o *output) writer(stream string) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		for _, a := range o.append(stream, p) {
			a.write(stream, p)
		}
		return len(p), nil
	})
}

// append adds to the log and returns who is attached.
func (o *output) append(stream string, p []byte) []*attachment {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for rest := p; len(rest) > 0; {
		end := bytes.IndexByte(rest, '\n') + 1
		if end == 0 {
			o.partial[stream] = append(o.partial[stream], rest...)
			break
		}
		o.lines = append(o.lines, line{now, stream, slices.Concat(o.partial[stream], rest[:end])})
		delete(o.partial, stream)
		rest = rest[end:]
	}
	o.notify()
	return slices.Clone(o.attached)
}

// end says that the process will write no more.
func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, stream := range []string{streamStdout, streamStderr} {
		if text := o.partial[stream]; len(text) > 0 {
			o.lines = append(o.lines, line{time.Now(), stream, text})
		}
	}
	clear(o.partial)
	o.ended = true
	o.notify()
}

// notify wakes those who follow. The caller holds the lock.
func (o *output) notify() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// after returns the lines from index i on, whether there will be no more, and a
// channel that is closed when that changes.
func (o *output) after(i int) (lines []line, ended bool, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clip(o.lines[i:]), o.ended, o.changed
}

// attach passes output on to the writers until detach is called.
func (o *output) attach(stdout, stderr io.Writer) (detach func()) {
	a := &attachment{stdout: stdout, stderr: stderr}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.attached = append(o.attached, a)
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.attached = slices.DeleteFunc(o.attached, func(b *attachment) bool { return a == b })
	}
}

// write passes p on. A writer that fails gets nothing more.
func (a *attachment) write(stream string, p []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := &a.stdout
	if stream == streamStderr {
		w = &a.stderr
	}
	if *w == nil {
		return
	}
	if _, err := (*w).Write(p); err != nil {
		*w = nil
	}
}

// logOptions select and format lines, as the API's PodLogOptions do.
type logOptions struct {
	follow     bool
	timestamps bool
	tail       int // lines; negative: all
	limit      int // bytes; negative: all
	since      time.Time
	stream     string // streamStdout, streamStderr or "" for both
}

// copyTo writes the selected lines to w. It ends when the log does, when w fails,
// when ctx ends, or, without follow, at the last line of this moment.
func (o *output) copyTo(ctx context.Context, w io.Writer, options logOptions) error {
	lines, ended, changed := o.after(0)
	next := len(lines)
	lines = options.selected(lines)
	if options.tail >= 0 && options.tail < len(lines) {
		lines = lines[len(lines)-options.tail:]
	}
	left := options.limit
	for {
		for _, l := range lines {
			text := l.text
			if options.timestamps {
				text = slices.Concat([]byte(l.time.UTC().Format(time.RFC3339Nano)+" "), text)
			}
			if left >= 0 {
				text = text[:min(left, len(text))]
				left -= len(text)
			}
			if _, err := w.Write(text); err != nil {
				return err
			}
			if left == 0 {
				return nil
			}
		}
		if ended || !options.follow {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		lines, ended, changed = o.after(next)
		next += len(lines)
		lines = options.selected(lines)
	}
}

func (options logOptions) selected(lines []line) []line {
	if options.stream == "" && options.since.IsZero() {
		return lines
	}
	var selected []line
	for _, l := range lines {
		if (options.stream == "" || l.stream == options.stream) && !l.time.Before(options.since) {
			selected = append(selected, l)
		}
	}
	return selected
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

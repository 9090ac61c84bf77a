// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailhelm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Root returns the folder of this repository: that of the main module of the
// current folder.
func Root(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("finding the repository: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// Build builds cmd/tailhelm into dir and returns the program's path. With race,
// the program ends with status 66 when it finds a data race.
func Build(ctx context.Context, dir string, race bool) (string, error) {
	root, err := Root(ctx)
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "tailhelm")
	args := []string{"build", "-o", bin}
	if race {
		args = append(args, "-race") // compiled alike by "go test -race"
	} else {
		args = append(args, "-trimpath") // compiled alike by "make build"
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/tailhelm")...) //nolint:gosec // the Go compiler
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building tailhelm: %w\n%s", err, out)
	}
	return bin, nil
}

// Command is a program to run, as a container has it.
type Command struct {
	// Path is the program.
	Path string
	// Args are its arguments, without its name.
	Args []string
	// Env is its whole environment, as NAME=value.
	Env []string
}

// Process is a running tailhelm.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // its end; read after done
	// terminated says that it has been sent SIGTERM.
	terminated atomic.Bool

	mu      sync.Mutex
	lines   []string
	health  string        // host:port of /readyz
	changed chan struct{} // closed and replaced at each line
}

// Start runs c until the process ends or ctx does; then it is killed.
func Start(ctx context.Context, c Command) (*Process, error) {
	p := &Process{done: make(chan struct{}), changed: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, c.Path, c.Args...) //nolint:gosec // the program under test
	p.cmd.Env = c.Env
	p.cmd.WaitDelay = 5 * time.Second
	out, err := p.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting tailhelm: %w", err)
	}
	go p.read(out)
	return p, nil
}

// read takes in the log until the process ends.
func (p *Process) read(out io.Reader) {
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n') // of any length: the program waits for who reads its log
		if line != "" {
			p.line(strings.TrimSuffix(line, "\n"))
		}
		if err != nil {
			break // the process has ended, or will be seen to have
		}
	}
	p.err = p.cmd.Wait()
	close(p.done)
}

// line notes one line of the log.
func (p *Process) line(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = append(p.lines, line)
	var entry struct{ Msg, Address string }
	if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "serving health and metrics" {
		p.health = strings.Replace(entry.Address, "[::]", "127.0.0.1", 1)
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// Log returns the lines of the log so far.
func (p *Process) Log() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.lines...)
}

// WaitLog returns the first line of the log that match accepts, once there is one.
func (p *Process) WaitLog(ctx context.Context, match func(line string) bool) (string, error) {
	for seen := 0; ; {
		p.mu.Lock()
		lines, changed := p.lines, p.changed
		p.mu.Unlock()
		for ; seen < len(lines); seen++ {
			if match(lines[seen]) {
				return lines[seen], nil
			}
		}
		if err := wait(ctx, p, changed); err != nil {
			return "", fmt.Errorf("waiting for a line of the log: %w\n%s", err, p.tail())
		}
	}
}

// wait waits for something of next, and errs at the end of the process or of ctx.
func wait[T any](ctx context.Context, p *Process, next <-chan T) error {
	select {
	case <-next:
		return nil
	case <-p.done:
		return fmt.Errorf("tailhelm has ended: %w", errors.Join(p.err, errors.New("it should not have")))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Get asks the process's own port for a path such as /readyz?verbose.
func (p *Process) Get(ctx context.Context, path string) (code int, body string, err error) {
	p.mu.Lock()
	health := p.health
	p.mu.Unlock()
	if health == "" {
		return 0, "", errors.New("tailhelm has not said where it serves health")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+health+path, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// WaitReady waits until /readyz says yes. Its error holds what /readyz says last
// and the end of the log.
func (p *Process) WaitReady(ctx context.Context) error {
	_, err := p.WaitReadyz(ctx, func(code int, _ string) bool { return code == http.StatusOK })
	return err
}

// WaitReadyz waits until what /readyz?verbose answers is accepted, and returns it.
func (p *Process) WaitReadyz(ctx context.Context, accept func(code int, body string) bool) (string, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	last := ""
	for {
		code, body, err := p.Get(ctx, "/readyz?verbose")
		if err == nil {
			if last = body; accept(code, body) {
				return body, nil
			}
		}
		if err := wait(ctx, p, tick.C); err != nil {
			return "", fmt.Errorf("waiting for /readyz: %w\n%s\n%s", err, last, p.tail())
		}
	}
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the process, SIGTERM no more than once: a second one kills it, as
// that of somebody who does not want to wait for its drain should.
func (p *Process) Signal(s syscall.Signal) error {
	if s == syscall.SIGTERM && p.terminated.Swap(true) {
		return nil
	}
	return p.cmd.Process.Signal(s)
}

// Wait waits for the end of the process and returns its exit status.
func (p *Process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("waiting for the end of tailhelm: %w\n%s", ctx.Err(), p.tail())
	}
}

// Stop ends the process with SIGTERM and returns an error unless it ends with
// status 0.
func (p *Process) Stop(ctx context.Context) error {
	select {
	case <-p.done:
	default:
		if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	code, err := p.Wait(ctx)
	if err == nil && code != 0 {
		err = fmt.Errorf("tailhelm ended with status %d\n%s", code, p.tail())
	}
	return err
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// tail returns the end of the log, for errors.
func (p *Process) tail() string {
	lines := p.Log()
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}

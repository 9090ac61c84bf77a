// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// Start starts cmd in a process group of its own, or in a session of its own if
// cmd asks for one, so that it ends when this process does. Use it in place of
// cmd.Start; cmd.Wait is as ever.
func Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// A session leader already leads a group, and setpgid would fail for it.
	cmd.SysProcAttr.Setpgid = !cmd.SysProcAttr.Setsid
	dieWithParent(cmd.SysProcAttr)
	started := make(chan error, 1)
	forker() <- func() { started <- cmd.Start() }
	return <-started
}

// forker is where the one thread that forks takes its work from. See doc.go.
var forker = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// KillGroup ends the process group that a command of [Start] leads. A group that is
// gone is no error.
func KillGroup(pid int) error {
	if err := syscall.Kill(-pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill process group %d: %w", pid, err)
	}
	return nil
}

// Process is a server that runs until it is stopped, with its output in a file.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; set before done closes
}

// Serve starts the program with the given arguments in dir. Its output is appended
// to the file log. The environment holds PATH, HOME and TMPDIR alone, so that no
// setting of the caller's shell reaches it.
func Serve(ctx context.Context, dir, log, program string, args ...string) (*Process, error) {
	name := filepath.Base(program)
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600) //nolint:gosec // The caller's own log file.
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	// The child has its own descriptor.
	defer func() { _ = out.Close() }()

	// The server outlives the call that starts it: ctx bounds only the start.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, args...) //nolint:gosec // Programs that the caller built.
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + os.TempDir()}
	cmd.Stdout, cmd.Stderr = out, out
	if err := Start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{name: name, log: log, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Failure describes a process that ended by itself or did not do what it should:
// cause, how it ended if it did, and the end of its log.
func (p *Process) Failure(cause error) error {
	select {
	case <-p.done:
		if p.err != nil {
			cause = errors.Join(cause, p.err)
		} else {
			cause = errors.Join(cause, errors.New("exit status 0"))
		}
	default:
	}
	return fmt.Errorf("%s: %w\n%s:\n%s", p.name, cause, p.log, Tail(p.log))
}

// Terminate sends SIGTERM and waits for the process to end. If ctx ends first, the
// process is killed, and that is an error.
func (p *Process) Terminate(ctx context.Context) error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		err := p.Failure(fmt.Errorf("did not stop: %w", context.Cause(ctx)))
		return errors.Join(err, p.Kill())
	}
}

// Kill sends SIGKILL to the process and its children and waits for its end.
func (p *Process) Kill() error {
	select {
	case <-p.done: // The process ID may be another's by now.
		return nil
	default:
	}
	if err := KillGroup(p.cmd.Process.Pid); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	<-p.done
	return nil
}

// tailSize is how much of a log an error holds, in bytes.
const tailSize = 4 << 10

// Tail is the end of a log file: whole lines, a few KiB, for an error message. It
// is empty if the file cannot be read.
func Tail(name string) string {
	f, err := os.Open(name) //nolint:gosec // The caller's own log file.
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	from := max(0, size-tailSize)
	b := make([]byte, size-from)
	n, err := f.ReadAt(b, from)
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	text := string(b[:n])
	if from > 0 {
		_, text, _ = strings.Cut(text, "\n")
	}
	return text
}

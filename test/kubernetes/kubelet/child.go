// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/creack/pty"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/tailhelm/tailhelm/test/kubernetes/internal/process"
)

// marker is the variable in the environment of each process of a container, from
// where all descendants inherit it. It tells whom to kill with the container: a
// process group would miss those that left it.
const marker = "TAILHELM_TEST_CONTAINER"

// task is a command to run in a container.
type task struct {
	command []string
	env     []string
	dir     string
	tty     bool
	// stdin asks for a pipe (or the terminal) to the command. Without it, the command
	// reads from an empty file.
	stdin bool
	// stdout and stderr receive the output; nil discards it. A terminal has no stderr.
	stdout, stderr io.Writer
}

// child is a running task.
type child struct {
	cmd *exec.Cmd
	// stdin is nil if the task asked for none. Closing a terminal's stdin is a no-op.
	stdin io.WriteCloser
	// terminal is nil if the task asked for none.
	terminal *os.File
	copies   sync.WaitGroup // output still to be copied

	mu     sync.Mutex // guards the terminal's end against its size
	closed bool
}

// start runs the task in a session of its own.
func (t task) start() (*child, error) {
	// Its end is decided by wait and kill, not by a context.
	cmd := exec.CommandContext(context.Background(), t.command[0], t.command[1:]...) //nolint:gosec // What the test put into the Pod.
	cmd.Dir, cmd.Env = t.dir, t.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c := &child{cmd: cmd}
	if t.tty {
		return c, c.startOnTerminal(t)
	}
	return c, c.startOnPipes(t)
}

func (c *child) startOnPipes(t task) error {
	var theirs []io.Closer
	defer func() {
		for _, f := range theirs {
			_ = f.Close() // The command has its own descriptors.
		}
	}()
	// Not cmd.StdinPipe and its like: with them, Wait would also wait for the other
	// end of standard input, and for descendants that hold the output open.
	var copies []func()
	for _, out := range []struct {
		file *io.Writer
		to   io.Writer
	}{{&c.cmd.Stdout, t.stdout}, {&c.cmd.Stderr, t.stderr}} {
		if out.to == nil {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		theirs = append(theirs, w)
		*out.file = w
		copies = append(copies, func() {
			defer func() { _ = r.Close() }()
			// A reader that went away ends the copy; the writer then gets SIGPIPE.
			_, _ = io.Copy(out.to, r)
		})
	}
	if t.stdin {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		theirs = append(theirs, r)
		c.cmd.Stdin, c.stdin = r, w
	}
	if err := process.Start(c.cmd); err != nil {
		return err
	}
	for _, f := range copies {
		c.copies.Go(f)
	}
	return nil
}

func (c *child) startOnTerminal(t task) error {
	terminal, tty, err := pty.Open()
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	defer func() { _ = tty.Close() }() // The command has its own descriptor.
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = tty, tty, tty
	c.cmd.SysProcAttr.Setctty = true
	if err := process.Start(c.cmd); err != nil {
		return errors.Join(err, terminal.Close())
	}
	c.terminal = terminal
	if t.stdin {
		// What hangs up a terminal is the end of its session, not of a client's stream.
		c.stdin = struct {
			io.Writer
			io.Closer
		}{terminal, io.NopCloser(nil)}
	}
	c.copies.Go(func() {
		out := t.stdout
		if out == nil {
			out = io.Discard
		}
		_, err := io.Copy(out, terminal)
		if err != nil && !errors.Is(err, syscall.EIO) {
			// The reader went away. A terminal that nobody reads would stop the command.
			_, _ = io.Copy(io.Discard, terminal)
		}
	})
	return nil
}

// resize follows the size of the client's terminal until the channel closes.
func (c *child) resize(sizes <-chan remotecommand.TerminalSize) {
	for size := range sizes {
		c.setSize(size)
	}
}

func (c *child) setSize(size remotecommand.TerminalSize) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.terminal == nil || c.closed || size.Width == 0 || size.Height == 0 {
		return
	}
	// Nothing depends on the size of a terminal that refuses it.
	_ = pty.Setsize(c.terminal, &pty.Winsize{Rows: size.Height, Cols: size.Width})
}

// close closes this side of what the process read and wrote.
func (c *child) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.terminal != nil {
		_ = c.terminal.Close()
	} else if c.stdin != nil {
		_ = c.stdin.Close()
	}
}

// wait waits for the end of the process and returns its exit code, 128 and the
// signal's number if a signal ended it. ended, if set, is called between the end of
// the process and the end of its output.
func (c *child) wait(ended func()) (int, error) {
	err := c.cmd.Wait()
	if ended != nil {
		ended()
	}
	c.copies.Wait()
	c.close()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return c.cmd.ProcessState.ExitCode(), nil
}

// killMarked kills every process with the given marker. Where there is no /proc, it
// does nothing, and descendants in process groups of their own are missed.
func killMarked(value string) {
	want := []byte(marker + "=" + value)
	// Until none is left: a process may fork while the list is read.
	for found := true; found; {
		found = false
		names, err := filepath.Glob("/proc/[0-9]*/environ")
		if err != nil {
			return
		}
		for _, name := range names {
			env, err := os.ReadFile(name) //nolint:gosec // Below /proc.
			if err != nil || !hasVariable(env, want) {
				continue // Another user's, or gone; a dead one's is empty.
			}
			var pid int
			if _, err := fmt.Sscanf(name, "/proc/%d/", &pid); err != nil {
				continue
			}
			found = syscall.Kill(pid, syscall.SIGKILL) == nil || found
		}
	}
}

// hasVariable reports whether one of the NUL-separated variables is want.
func hasVariable(env, want []byte) bool {
	for variable := range bytes.SplitSeq(env, []byte{0}) {
		if bytes.Equal(variable, want) {
			return true
		}
	}
	return false
}

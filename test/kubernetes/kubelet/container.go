// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/tailhelm/tailhelm/test/kubernetes/internal/process"
)

// startError is the exit code of a container whose command cannot be started.
const startError = 128

// container is a container of a pod: a main process and those that exec starts. It
// starts once.
type container struct {
	spec   corev1.EphemeralContainerCommon
	id     string
	dir    string
	marker string
	env    []string
	output *output
	// life ends when the pod is to go; streams end then, whatever the clients do.
	life context.Context

	main   *child        // nil if the command could not be started
	exited chan struct{} // closed when the main process is gone, and all others with it
	done   chan struct{} // closed when all its output is in the log too

	mu    sync.Mutex
	state corev1.ContainerState
}

// startContainer starts the main process. changed is called when it has ended.
func startContainer(p *pod, spec corev1.EphemeralContainerCommon, changed func()) *container {
	c := &container{
		spec:   spec,
		id:     string(p.uid) + "/" + spec.Name,
		dir:    p.dir,
		marker: string(p.uid) + "/" + spec.Name,
		output: newOutput(),
		life:   p.life,
		exited: make(chan struct{}),
		done:   make(chan struct{}),
	}
	c.env = c.environ(p.name)
	main, err := task{
		command: command(spec),
		env:     c.env,
		dir:     c.dir,
		tty:     spec.TTY,
		stdin:   spec.Stdin,
		stdout:  c.output.writer(streamStdout),
		stderr:  c.output.writer(streamStderr),
	}.start()
	started := metav1.Now()
	if err != nil {
		c.terminated(started, startError, "StartError", err.Error())
		c.output.end()
		close(c.exited)
		close(c.done)
		return c
	}
	c.main = main
	c.state.Running = &corev1.ContainerStateRunning{StartedAt: started}
	go c.wait(started, changed)
	return c
}

// command is what the container runs. What its image would run is not known.
func command(spec corev1.EphemeralContainerCommon) []string {
	switch {
	case len(spec.Command) > 0:
		return slices.Concat(spec.Command, spec.Args)
	case spec.Stdin:
		// The images that people attach to start a shell.
		return []string{"sh"}
	default:
		return []string{"tail", "-f", "/dev/null"}
	}
}

// environ is the environment of the container's processes.
func (c *container) environ(podName string) []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir, "HOSTNAME=" + podName}
	for _, v := range c.spec.Env {
		if v.ValueFrom == nil {
			env = append(env, v.Name+"="+v.Value)
		}
	}
	if c.spec.TTY {
		env = append(env, "TERM=xterm")
	}
	return append(env, marker+"="+c.marker)
}

func (c *container) wait(started metav1.Time, changed func()) {
	code, err := c.main.wait(func() {
		// As at the end of a container's first process: the others end with it.
		killMarked(c.marker)
		close(c.exited)
	})
	reason, message := "Completed", ""
	if code != 0 {
		reason = "Error"
	}
	if err != nil {
		code, reason, message = startError, "ContainerStatusUnknown", err.Error()
	}
	c.output.end()
	c.terminated(started, code, reason, message)
	close(c.done)
	changed()
}

func (c *container) terminated(started metav1.Time, code int, reason, message string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode:    int32(code), //nolint:gosec // At most 255.
		Reason:      reason,
		Message:     message,
		StartedAt:   started,
		FinishedAt:  metav1.NewTime(time.Now()),
		ContainerID: containerIDPrefix + c.id,
	}}
}

// kill ends all processes of the container and waits until they are gone.
func (c *container) kill() error {
	select {
	case <-c.exited:
		return nil
	default:
	}
	if err := process.KillGroup(c.main.cmd.Process.Pid); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	<-c.exited
	return nil
}

// running reports an error if the container has ended.
func (c *container) running() error {
	select {
	case <-c.exited:
		return fmt.Errorf("container %s is not running", c.spec.Name)
	default:
		return nil
	}
}

// ExecInContainer runs a command next to the main process. It implements
// [remotecommand.Executor]. A command that fails is a [utilexec.CodeExitError], from
// which the client learns the exit code. As in a real container, the command goes
// on when the client vanishes; it sees the end of its input.
func (c *container) ExecInContainer(_ context.Context, _, _, _ string, cmd []string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	if err := c.running(); err != nil {
		return err
	}
	if len(cmd) == 0 {
		return errors.New("no command")
	}
	env := c.env
	if tty {
		env = append(slices.Clip(env), "TERM=xterm")
	}
	child, startErr := task{
		command: cmd, env: env, dir: c.dir, tty: tty, stdin: in != nil,
		stdout: writer(out), stderr: writer(err),
	}.start()
	if startErr != nil {
		return startErr
	}
	if resize != nil {
		go child.resize(resize)
	}
	if in != nil {
		go func() {
			_, _ = io.Copy(child.stdin, in)
			_ = child.stdin.Close()
		}()
	}
	code, waitErr := child.wait(nil)
	if waitErr == nil && code != 0 {
		waitErr = utilexec.CodeExitError{Err: fmt.Errorf("exit status %d", code), Code: code}
	}
	return waitErr
}

// AttachContainer connects the client with the main process. It implements
// [remotecommand.Attacher]. It ends with the main process, with the pod, or with the
// client's input, unless the end of that input is the process's to see (stdinOnce).
func (c *container) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	if err := c.running(); err != nil {
		return err
	}
	defer c.output.attach(writer(out), writer(err))()
	if resize != nil {
		go c.main.resize(resize)
	}
	left := make(chan struct{})
	if in != nil {
		go func() {
			defer close(left)
			if c.main.stdin == nil {
				_, _ = io.Copy(io.Discard, in)
				return
			}
			_, _ = io.Copy(c.main.stdin, in)
			if c.spec.StdinOnce && !c.spec.TTY {
				_ = c.main.stdin.Close()
				<-c.done
			}
		}()
	}
	select {
	case <-c.done:
	case <-left:
	case <-c.life.Done():
	case <-ctx.Done():
	}
	return nil
}

// writer is w, and nil if w is: a nil io.WriteCloser in an io.Writer would be
// neither.
func writer(w io.WriteCloser) io.Writer {
	if w == nil {
		return nil
	}
	return w
}

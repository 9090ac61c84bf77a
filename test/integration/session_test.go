// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/tailhelm/tailhelm/test/kubernetes"
)

// protocol is a way in which kubectl opens streams.
type protocol struct {
	name   string
	method string // of its requests, which tells the two apart
	env    []string
}

var protocols = []protocol{
	{"WebSocket", "GET", []string{"KUBECTL_REMOTE_COMMAND_WEBSOCKETS=true", "KUBECTL_PORT_FORWARD_WEBSOCKETS=true"}},
	{"SPDY", "POST", []string{"KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false", "KUBECTL_PORT_FORWARD_WEBSOCKETS=false"}},
}

// session is a kubectl process with which a test talks.
type session struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser // its terminal, if it has one
	done  chan struct{}
	err   error // how it ended; read after done

	mu      sync.Mutex
	output  bytes.Buffer // what nobody has expected yet
	changed chan struct{}
}

// Write takes in what kubectl writes, on standard error too.
func (s *session) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
	return s.output.Write(p)
}

// start starts kubectl. It is killed when the test ends.
func (c *caller) start(p protocol, args ...string) *session {
	c.t.Helper()
	s := c.newSession(p, args)
	var err error
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		c.t.Fatal(err)
	}
	s.cmd.Stdout, s.cmd.Stderr = s, s
	if err := s.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	return s
}

// startTerminal starts kubectl on a terminal.
func (c *caller) startTerminal(p protocol, args ...string) *session {
	c.t.Helper()
	s := c.newSession(p, args)
	terminal, err := pty.StartWithSize(s.cmd, &pty.Winsize{Rows: 33, Cols: 77})
	if err != nil {
		c.t.Fatal(err)
	}
	s.stdin = terminal
	go func() {
		_, _ = io.Copy(s, terminal) // ends with an error when kubectl does
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	return s
}

func (c *caller) newSession(p protocol, args []string) *session {
	c.t.Helper()
	s := &session{t: c.t, cmd: c.command(context.Background(), args...), done: make(chan struct{}), changed: make(chan struct{})}
	s.cmd.Env = append(s.cmd.Env, p.env...)
	c.t.Cleanup(func() {
		if s.cmd.Process != nil {
			_ = s.cmd.Process.Kill() // it may have ended
			<-s.done
		}
	})
	return s
}

// say writes to kubectl.
func (s *session) say(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.stdin, text); err != nil {
		s.t.Fatalf("writing to kubectl: %v", err)
	}
}

// expect waits until kubectl's output matches, and returns the first submatch, or
// the match if there is none. What follows the match is for the next call.
func (s *session) expect(pattern string) string {
	s.t.Helper()
	return s.ask("", pattern)
}

// ask says something, again and again, until the output matches. Input that comes
// before the other end listens is lost in some commands.
func (s *session) ask(prompt, pattern string) string {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	ctx := within(s.t, patience)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for done := (<-chan struct{})(s.done); ; {
		s.mu.Lock()
		changed, text := s.changed, s.output.String()
		if at := re.FindStringSubmatchIndex(text); at != nil {
			s.output.Next(at[1])
			s.mu.Unlock()
			return text[at[len(at)-2]:at[len(at)-1]]
		}
		s.mu.Unlock()
		if done == nil {
			s.t.Fatalf("kubectl has ended (%v) without %q:\n%s", s.err, pattern, text)
		}
		select {
		case <-changed:
		case <-done:
			done = nil // look once more
		case <-tick.C:
			_, _ = io.WriteString(s.stdin, prompt)
		case <-ctx.Done():
			s.t.Fatalf("waiting for %q of kubectl: %v\n%s", pattern, ctx.Err(), text)
		}
	}
}

// wait waits for the end of kubectl and returns its error.
func (s *session) wait(ctx context.Context) error {
	s.t.Helper()
	select {
	case <-s.done:
		return s.err
	case <-ctx.Done():
		s.t.Fatalf("waiting for the end of kubectl %s: %v\n%s", strings.Join(s.cmd.Args[3:], " "), ctx.Err(), s.rest())
		return nil
	}
}

// rest is the output that nobody has expected.
func (s *session) rest() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.output.String()
}

// kubelet runs the pods of tests.
var kubelet = sync.OnceValues(func() (*kubernetes.Kubelet, error) {
	return shared.cluster.StartKubelet(context.Background(), kubernetes.KubeletOptions{})
})

// newPod runs a pod with a main container, which repeats what it reads, and returns
// when it is ready.
func newPod(t *testing.T, namespace string) (name string) {
	t.Helper()
	k := must[*kubernetes.Kubelet](t)(kubelet())
	name = unique("pod")
	create := shared.cluster.Kubectl(within(t, patience), "create", "-n", namespace, "-f", "-")
	create.Stdin = strings.NewReader(fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %s
  containers:
  - name: main
    image: none
    stdin: true
    command: [sh, -c, 'echo started; while read line; do echo "you said $line"; done']
`, name, k.Name()))
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("creating a pod: %v\n%s", err, out)
	}
	wait := shared.cluster.Kubectl(within(t, patience), "wait", "-n", namespace, "--for=condition=Ready", "--timeout=100s", "pod/"+name)
	if out, err := wait.CombinedOutput(); err != nil {
		t.Fatalf("waiting for a pod: %v\n%s", err, out)
	}
	t.Cleanup(func() { // its processes are of this machine
		out, err := shared.cluster.Kubectl(context.Background(), "delete", "pod", "-n", namespace, name, "--grace-period=1", "--ignore-not-found").CombinedOutput()
		if err != nil {
			t.Errorf("deleting a pod: %v\n%s", err, out)
		}
	})
	return name
}

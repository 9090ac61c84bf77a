// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/creack/pty"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"

	corev1 "k8s.io/api/core/v1"
)

// bulk is how much is sent where much is sent.
const bulk = 24 << 20

// owner is a user with a namespace and a pod in it.
func owner(t *testing.T, p *proxy) (c *caller, namespace, pod string) {
	t.Helper()
	c = newUser(t, p)
	namespace = newNamespace(t, user(c.user))
	return c, namespace, newPod(t, namespace)
}

// TestStreams uses every stream that kubectl opens, over both protocols.
func TestStreams(t *testing.T) {
	t.Parallel()
	for _, p := range protocols {
		for name, test := range map[string]func(t *testing.T, c *caller, p protocol, ns, pod string){
			"exec": testExec, "terminal": testTerminal, "attach": testAttach, "bulk": testBulk,
			"portforward": testPortForward, "copy": testCopy, "debug": testDebug,
		} {
			t.Run(p.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				c, ns, pod := owner(t, shared.proxy)
				test(t, c, p, ns, pod)
				// Without a fallback to the other protocol.
				e := shared.proxy.waitRequest(t, func(e logEntry) bool { return e.Kind == "stream" && e.Namespace == ns })
				if e.Method != p.method || e.Code != http.StatusSwitchingProtocols || e.User != c.user {
					t.Errorf("the stream was %+v, want %s", e, p.method)
				}
			})
		}
	}
}

func testExec(t *testing.T, c *caller, p protocol, ns, pod string) {
	cmd := c.command(within(t, patience), "exec", "-n", ns, "-i", pod, "--", "sh", "-c", "cat; echo to stderr >&2; exit 42")
	cmd.Env = append(cmd.Env, p.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewBufferString("to stdout\n"), &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 42 {
		t.Errorf("exec: %v, want exit status 42", err)
	}
	if stdout.String() != "to stdout\n" || !bytes.HasPrefix(stderr.Bytes(), []byte("to stderr\n")) {
		t.Errorf("stdout %q, stderr %q", &stdout, &stderr)
	}
}

func testTerminal(t *testing.T, c *caller, p protocol, ns, pod string) {
	s := c.startTerminal(p, "exec", "-n", ns, "-it", pod, "--", "sh")
	s.ask("stty size\n", `33 77\r\n`)
	terminal, ok := s.stdin.(*os.File)
	if !ok {
		t.Fatal("no terminal")
	}
	if err := pty.Setsize(terminal, &pty.Winsize{Rows: 44, Cols: 99}); err != nil {
		t.Fatal(err)
	}
	s.ask("stty size\n", `44 99\r\n`)
	s.say("exit 7\n")
	var exit *exec.ExitError
	if err := s.wait(within(t, patience)); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exec -it: %v, want exit status 7", err)
	}
}

func testAttach(t *testing.T, c *caller, p protocol, ns, pod string) {
	s := c.start(p, "attach", "-n", ns, "-i", pod)
	s.ask("hello\n", "you said hello\n")
	if err := s.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.wait(within(t, patience)); err != nil {
		t.Errorf("attach: %v", err)
	}
}

// testBulk sends much in both directions at once. The stream ends when everything
// is back: the end of a WebSocket stream with a slow reader was seen to be missing
// with no proxy in between, too.
func testBulk(t *testing.T, c *caller, p protocol, ns, pod string) {
	testBulkOf(t, bulk, c, p, ns, pod)
}

func testBulkOf(t *testing.T, size int, c *caller, p protocol, ns, pod string) {
	t.Helper()
	content := make([]byte, size)
	_, _ = rand.Read(content)
	cmd := c.command(within(t, patience), "exec", "-n", ns, "-i", pod, "--", "cat")
	cmd.Env = append(cmd.Env, p.env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin := must[io.WriteCloser](t)(cmd.StdinPipe())
	stdout := must[io.ReadCloser](t)(cmd.StdoutPipe())
	noError(t, cmd.Start())
	go func() { _, _ = stdin.Write(content) }() // what is missing is missed below
	hash := sha256.New()
	if n, err := io.CopyN(hash, stdout, int64(size)); err != nil {
		t.Errorf("%d of %d bytes came back: %v", n, size, err)
	}
	if want := sha256.Sum256(content); !bytes.Equal(hash.Sum(nil), want[:]) {
		t.Error("something else came back than was sent")
	}
	noError(t, stdin.Close())
	if err := cmd.Wait(); err != nil {
		t.Errorf("exec cat: %v\n%s", err, &stderr)
	}
}

// copyAttempts is how often a copy may be tried: see testBulk.
const copyAttempts = 5

// testCopy copies a file there and back. See testBulk for why kubectl retries.
func testCopy(t *testing.T, c *caller, p protocol, ns, pod string) {
	here := t.TempDir()
	content := make([]byte, bulk)
	_, _ = rand.Read(content)
	if err := os.WriteFile(filepath.Join(here, "there"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"there", pod + ":copy"}, {pod + ":copy", "back"}} {
		var out []byte
		var err error
		// kubectl's own retries are not for a stream that ends without its status.
		for range copyAttempts {
			cmd := c.command(within(t, patience), append([]string{"cp", "-n", ns, "--retries=20"}, args...)...)
			cmd.Dir, cmd.Env = here, append(cmd.Env, p.env...)
			if out, err = cmd.CombinedOutput(); err == nil || !bytes.Contains(out, []byte("unexpected EOF")) {
				break
			}
		}
		if err != nil {
			t.Fatalf("cp %v: %v\n%s", args, err, out)
		}
	}
	back, err := os.ReadFile(filepath.Join(here, "back"))
	if err != nil || sha256.Sum256(back) != sha256.Sum256(content) {
		t.Errorf("%d bytes came back (%v), and they are not what was sent", len(back), err)
	}
}

func testDebug(t *testing.T, c *caller, p protocol, ns, pod string) {
	s := c.start(p, "debug", "-n", ns, "-i", pod, "--image=none", "--profile=general", "--", "cat")
	s.ask("a question\n", "a question\n")
	if err := s.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.wait(within(t, patience)); err != nil {
		t.Errorf("debug: %v", err)
	}
}

// echoServer is a server in every pod, as pods have this machine's ports. It sends
// back what it gets.
func echoServer(t *testing.T) (port string) {
	t.Helper()
	l := must[net.Listener](t)(new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:0"))
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// forward starts a port-forward to an echo server, and connects to it.
func forward(t *testing.T, c *caller, p protocol, ns, pod string) (*session, net.Conn) {
	t.Helper()
	s := c.start(p, "port-forward", "-n", ns, "--address=127.0.0.1", "pod/"+pod, ":"+echoServer(t))
	addr := s.expect(`Forwarding from (127\.0\.0\.1:\d+)`)
	conn := must[net.Conn](t)(new(net.Dialer).DialContext(within(t, patience), "tcp4", addr))
	t.Cleanup(func() { _ = conn.Close() })
	return s, conn
}

// echo sends something and wants it back.
func echo(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(conn, back); err != nil || string(back) != text {
		t.Fatalf("sent %q, got %q, %v", text, back, err)
	}
}

func testPortForward(t *testing.T, c *caller, p protocol, ns, pod string) {
	s, conn := forward(t, c, p, ns, pod)
	for i := range 3 {
		echo(t, conn, fmt.Sprintf("question %d", i))
	}
	_ = conn.Close()
	_ = s.cmd.Process.Kill() // kubectl forwards until it is ended
}

// TestIdleStreams: a stream on which nothing happens for longer than what is usual
// between proxies stays. The wait is what is tested here.
func TestIdleStreams(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it waits for more than a minute")
	}
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			c, ns, pod := owner(t, shared.proxy)
			_, conn := forward(t, c, p, ns, pod)
			echo(t, conn, "before")
			shell := c.start(p, "exec", "-n", ns, "-i", pod, "--", "cat")
			shell.ask("before\n", "before\n")
			select {
			case <-time.After(65 * time.Second):
			case <-t.Context().Done():
			}
			echo(t, conn, "after")
			shell.say("after\n")
			shell.expect("after\n")
		})
	}
}

// TestWebSocketVersions speaks each version of the WebSocket protocol for exec.
func TestWebSocketVersions(t *testing.T) {
	t.Parallel()
	c, ns, pod := owner(t, shared.proxy)
	for _, version := range []string{"v4.channel.k8s.io", "v5.channel.k8s.io"} {
		config := c.config()
		url := c.client().CoreV1().RESTClient().Get().Resource("pods").Namespace(ns).Name(pod).SubResource("exec").VersionedParams(
			&corev1.PodExecOptions{Stdin: version[:2] == "v5", Stdout: true, Stderr: true, Command: []string{"sh", "-c", "cat; echo done; echo oh >&2; exit 3"}}, scheme.ParameterCodec).URL()
		executor := must[remotecommand.Executor](t)(remotecommand.NewWebSocketExecutorForProtocols(config, http.MethodGet, url.String(), version))
		var stdout, stderr bytes.Buffer
		options := remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr}
		want := "done\n"
		if version[:2] == "v5" { // which can end standard input
			options.Stdin, want = bytes.NewBufferString("said\n"), "said\ndone\n"
		}
		err := executor.StreamWithContext(within(t, patience), options)
		var exit interface{ ExitStatus() int }
		if !errors.As(err, &exit) || exit.ExitStatus() != 3 {
			t.Errorf("%s: %v, want exit status 3", version, err)
		}
		if stdout.String() != want || stderr.String() != "oh\n" {
			t.Errorf("%s: stdout %q, stderr %q", version, &stdout, &stderr)
		}
	}
}

// TestLogs follows a log: each line arrives when it is written.
func TestLogs(t *testing.T) {
	t.Parallel()
	c, ns, pod := owner(t, shared.proxy)
	follow := c.start(protocols[0], "logs", "-n", ns, "-f", pod)
	follow.expect("started\n")
	speaker := c.start(protocols[0], "attach", "-n", ns, "-i", pod)
	speaker.ask("one\n", "you said one\n")
	follow.expect("you said one\n")
	speaker.say("two\n")
	follow.expect("you said two\n")
	if out := c.mustKubectl("logs", "-n", ns, "--tail=1", pod); out != "you said two\n" {
		t.Errorf("the last line is %q", out)
	}
	c.mustKubectl("delete", "pod", "-n", ns, pod, "--grace-period=1")
	if err := follow.wait(within(t, patience)); err != nil {
		t.Errorf("logs -f: %v", err)
	}
	e := shared.proxy.waitRequest(t, func(e logEntry) bool { return e.Subresource == "log" && e.Namespace == ns && e.Kind == "stream" })
	if e.Bytes == 0 || e.Code != http.StatusOK {
		t.Errorf("the log says %+v", e)
	}
}

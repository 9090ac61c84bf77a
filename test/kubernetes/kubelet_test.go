// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/creack/pty"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

// protocols are the two that kubectl speaks to the API server.
var protocols = []protocol{{"WebSocket", "true"}, {"SPDY", "false"}}

type protocol struct{ name, webSockets string }

func (p protocol) kubectl(t *testing.T, c *Cluster, args ...string) *exec.Cmd {
	t.Helper()
	cmd := c.Kubectl(patient(t), args...)
	cmd.Env = append(cmd.Env, "KUBECTL_REMOTE_COMMAND_WEBSOCKETS="+p.webSockets, "KUBECTL_PORT_FORWARD_WEBSOCKETS="+p.webSockets)
	return cmd
}

func TestExec(t *testing.T) {
	c, _ := echo(t, "echo")
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			cmd := p.kubectl(t, c, "exec", "-i", "echo", "-c", "main", "--", "sh", "-c", "cat; echo to stderr >&2")
			cmd.Stdin = strings.NewReader("to stdout\n")
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); err != nil {
				t.Errorf("kubectl exec: %v", err)
			}
			if stdout.String() != "to stdout\n" || stderr.String() != "to stderr\n" {
				t.Errorf("stdout = %q, stderr = %q", &stdout, &stderr)
			}
		})
	}
}

func TestExitCode(t *testing.T) {
	c, _ := echo(t, "echo")
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			for command, want := range map[string]int{"exit 42": 42, "kill -9 $$": 137} {
				var exit *exec.ExitError
				err := p.kubectl(t, c, "exec", "echo", "-c", "main", "--", "sh", "-c", command).Run()
				if !errors.As(err, &exit) || exit.ExitCode() != want {
					t.Errorf("%s: error = %v, want exit status %d", command, err, want)
				}
			}
			out, err := p.kubectl(t, c, "exec", "echo", "-c", "main", "--", "no-such-command").CombinedOutput()
			if err == nil || !strings.Contains(string(out), "executable file not found") {
				t.Errorf("no-such-command: error = %v, and kubectl says %q", err, out)
			}
		})
	}
}

// TestTerminal runs kubectl on a terminal and changes its size.
func TestTerminal(t *testing.T) {
	c, _ := echo(t, "echo")
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			cmd := p.kubectl(t, c, "exec", "-it", "echo", "-c", "main", "--", "sh")
			terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 77})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = terminal.Close() }()
			screen := newScreen(terminal)
			// The size follows the start, so it is asked for until it is right.
			ask := func() { _, _ = io.WriteString(terminal, "tty; stty size\n") }
			screen.waitFor(patient(t), t, `/dev/pts/\d+\r\n33 77\r\n`, ask)
			if err := pty.Setsize(terminal, &pty.Winsize{Rows: 44, Cols: 99}); err != nil {
				t.Fatal(err)
			}
			screen.waitFor(patient(t), t, `44 99\r\n`, ask)
			if _, err := io.WriteString(terminal, "exit 7\n"); err != nil {
				t.Fatal(err)
			}
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
				t.Errorf("error = %v, want exit status 7", err)
			}
		})
	}
}

func TestAttach(t *testing.T) {
	c, _ := echo(t, "echo")
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			cmd := p.kubectl(t, c, "attach", "-i", "echo", "-c", "main")
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			screen := newScreen(stdout)
			// Output from before the attachment is not shown, so the line is said until heard.
			screen.waitFor(patient(t), t, "you said hello\n", func() { _, _ = io.WriteString(stdin, "hello\n") })
			if err := stdin.Close(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("kubectl attach: %v", err)
			}
		})
	}
}

func TestCopy(t *testing.T) {
	c, _ := echo(t, "echo")
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			here := t.TempDir()
			content := make([]byte, 3<<20)
			_, _ = rand.Read(content)
			if err := os.WriteFile(filepath.Join(here, "there"), content, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"there", "echo:copy"}, {"echo:copy", "back"}} {
				cmd := p.kubectl(t, c, append([]string{"cp", "-c", "main"}, args...)...)
				cmd.Dir = here
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("kubectl cp %v: %v\n%s", args, err, out)
				}
			}
			if back, err := os.ReadFile(filepath.Join(here, "back")); err != nil || !bytes.Equal(back, content) {
				t.Errorf("%d bytes came back (%v), and they are not what was sent", len(back), err)
			}
		})
	}
}

func TestPortForward(t *testing.T) {
	c, _ := echo(t, "echo")
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "from the pod")
			}))
			defer server.Close()
			_, port, err := net.SplitHostPort(server.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			cmd := p.kubectl(t, c, "port-forward", "--address=127.0.0.1", "pod/echo", ":"+port)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			local := newScreen(stdout).waitFor(patient(t), t, `127\.0\.0\.1:\d+`, nil)
			for range 3 {
				if body, err := fetch(patient(t), http.DefaultClient, "http://"+local); err != nil || body != "200 from the pod" {
					t.Errorf("got %q, %v", body, err)
				}
			}
		})
	}
}

func TestDebug(t *testing.T) {
	c, _ := echo(t, "echo")
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			cmd := p.kubectl(t, c, "debug", "-i", "echo", "--image=none", "--profile=general", "--", "sh", "-c", "cat")
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			newScreen(stdout).waitFor(patient(t), t, "a question\n", func() { _, _ = io.WriteString(stdin, "a question\n") })
			if err := stdin.Close(); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("kubectl debug: %v", err)
			}
		})
	}
}

func TestLogs(t *testing.T) {
	c, _ := echo(t, "echo")
	if out := must(t, c, "logs", "echo", "-c", "main"); !strings.HasPrefix(out, "started by the test\n") {
		t.Errorf("kubectl logs says %q", out)
	}
	cmd := c.Kubectl(patient(t), "logs", "-f", "--tail=0", "echo", "-c", "main")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	attach := c.Kubectl(patient(t), "attach", "-i", "echo", "-c", "main")
	speaker, err := attach.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := attach.Start(); err != nil {
		t.Fatal(err)
	}
	newScreen(stdout).waitFor(patient(t), t, "you said again\n", func() { _, _ = io.WriteString(speaker, "again\n") })
	must(t, c, "logs", "echo", "-c", "main", "--since=1h", "--timestamps")
	if out := must(t, c, "logs", "echo", "-c", "main", "--tail=1"); out != "you said again\n" {
		t.Errorf("the last line is %q", out)
	}
	_, _ = speaker.Close(), cmd.Process.Kill()
	_, _ = attach.Wait(), cmd.Wait()
}

// TestKubeletServesOnlyTheAPIServer asks the kubelet directly.
func TestKubeletServesOnlyTheAPIServer(t *testing.T) {
	c, k := sharedCluster(t)
	url := fmt.Sprintf("https://127.0.0.1:%d/containerLogs/default/echo/main", k.Port())
	anonymous := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.ca.pool()}}}
	if got, err := fetch(patient(t), anonymous, url); err != nil || !strings.HasPrefix(got, "401 ") {
		t.Errorf("without a certificate: %q, %v", got, err)
	}
	cert, err := c.ca.client("stranger", "admin", "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := c.ca.httpClient(cert)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := fetch(patient(t), stranger, url); err != nil || !strings.HasPrefix(got, "403 ") {
		t.Errorf("with another's certificate: %q, %v", got, err)
	}
}

// TestPodDeletion deletes a pod under a process that left its process group.
func TestPodDeletion(t *testing.T) {
	c, k := echo(t, "echo")
	pod, err := c.Client().CoreV1().Pods("default").Get(patient(t), "echo", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out := must(t, c, "exec", "echo", "-c", "main", "--", "sh", "-c", "setsid sleep 3600 >/dev/null 2>&1 & echo $!")
	var pid int
	if _, err := fmt.Sscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	must(t, c, "delete", "pod", "echo", "--timeout=100s")
	if dir := k.PodDir(pod.UID); exists(dir) {
		t.Errorf("%s is still there", dir)
	}
	err = wait.PollUntilContextCancel(patient(t), pollInterval, true, func(context.Context) (bool, error) {
		return ended(pid), nil
	})
	if err != nil {
		t.Errorf("process %d of the pod lives on", pid)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// ended reports whether the process has ended. One that nobody waited for has too.
func ended(pid int) bool {
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(stat, []byte(") Z "))
}

// fetch returns the status code and the body of an answer.
func fetch(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%d %s", resp.StatusCode, body), err
}

// screen is what a program has written so far.
type screen struct {
	updates chan string
	text    string
}

func newScreen(r io.Reader) *screen {
	s := &screen{updates: make(chan string, 1024)}
	go func() {
		defer close(s.updates)
		b := bufio.NewReader(r)
		for {
			chunk := make([]byte, 4096)
			n, err := b.Read(chunk)
			s.updates <- string(chunk[:n])
			if err != nil {
				return
			}
		}
	}()
	return s
}

// waitFor waits until the pattern matches what was written since the last match, and
// returns the match. It prompts the program, if prompt is set, again and again.
func (s *screen) waitFor(ctx context.Context, t *testing.T, pattern string, prompt func()) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var match string
	err := wait.PollUntilContextCancel(ctx, 2*pollInterval, true, func(context.Context) (bool, error) {
		if prompt != nil {
			prompt()
		}
		for {
			select {
			case update, ok := <-s.updates:
				s.text += update
				if !ok && !re.MatchString(s.text) {
					return false, io.ErrUnexpectedEOF
				}
				if ok {
					continue
				}
			default:
			}
			break
		}
		at := re.FindStringIndex(s.text)
		if at == nil {
			return false, nil
		}
		match, s.text = s.text[at[0]:at[1]], s.text[at[1]:]
		return true, nil
	})
	if err != nil {
		t.Fatalf("wait for %q: %v; there is:\n%s", pattern, err, s.text)
	}
	return match
}

// TestRun has a Pod scheduled, talks to its main process on a terminal and gets its
// exit code. Then the node is switched off under an open stream.
func TestRun(t *testing.T) {
	c, _ := sharedCluster(t)
	k, err := c.StartKubelet(patient(t), KubeletOptions{Name: "other", Schedule: true})
	if err != nil {
		t.Fatal(err)
	}
	cmd := c.Kubectl(patient(t), "run", "shell", "-it", "--rm", "--restart=Never", "--image=none")
	terminal, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = terminal.Close() }()
	newScreen(terminal).waitFor(patient(t), t, `3 is it`, func() { _, _ = io.WriteString(terminal, "echo $((1+2)) is it\n") })
	if _, err := io.WriteString(terminal, "exit 5\n"); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("error = %v, want exit status 5", err)
	}

	must(t, c, "run", "idle", "--image=none")
	must(t, c, "wait", "--for=condition=Ready", "--timeout=100s", "pod/idle")
	open := c.Kubectl(patient(t), "exec", "-i", "idle", "--", "cat")
	stdin, err := open.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := open.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := open.Start(); err != nil {
		t.Fatal(err)
	}
	newScreen(stdout).waitFor(patient(t), t, "hello", func() { _, _ = io.WriteString(stdin, "hello\n") })
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if err := open.Wait(); err == nil {
		t.Error("kubectl exec ends well, though its node was switched off")
	}
	must(t, c, "delete", "pod", "idle", "--force", "--grace-period=0")
}

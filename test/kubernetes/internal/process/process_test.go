// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// parentVariable makes this test binary a parent that starts a child and waits.
const parentVariable = "TAILHELM_TEST_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(parentVariable) != "" {
		os.Exit(parent())
	}
	os.Exit(m.Run())
}

// parent starts a child that shares its output, says so, and waits to be killed.
func parent() int {
	child := exec.CommandContext(context.Background(), "sh", "-c", "echo started; exec tail -f /dev/null")
	child.Stdout = os.Stdout
	if err := Start(child); err != nil {
		fmt.Println(err)
		return 1
	}
	if err := child.Wait(); err != nil {
		return 1
	}
	return 0
}

func TestChildEndsWithAParentThatIsKilled(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has a signal for it")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), parentVariable+"=1")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(r)
	if line, err := out.ReadString('\n'); err != nil || line != "started\n" {
		t.Fatalf("the parent says %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// The pipe ends when neither parent nor child holds it any more.
	if err := r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(out); err != nil {
		t.Errorf("%q, %v", rest, err)
	}
	_ = cmd.Wait()
}

// TestChildOutlivesTheThread starts a child from a thread that then ends. The kernel
// would kill the child if it had been forked there.
func TestChildOutlivesTheThread(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux confuses threads and parents")
	}
	cmd := exec.CommandContext(t.Context(), "cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error)
	var thread string
	start := func() {
		runtime.LockOSThread() // Never unlocked: Go ends the thread with the goroutine.
		thread = fmt.Sprintf("/proc/self/task/%d", syscall.Gettid())
		started <- Start(cmd)
	}
	go func() {
		runtime.LockOSThread()
		if syscall.Gettid() != syscall.Getpid() {
			start()
			return
		}
		// The process's first thread is the one that Go never ends. This goroutine
		// holds it, so that the next one gets another.
		defer runtime.UnlockOSThread()
		go start()
		<-t.Context().Done()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(thread); errors.Is(err, fs.ErrNotExist) {
			break
		}
		runtime.Gosched()
	}
	if _, err := io.WriteString(stdin, "alive\n"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("alive\n"))
	if _, err := io.ReadFull(stdout, got); err != nil {
		t.Fatalf("the child is gone: %v", err)
	}
	if err := errors.Join(stdin.Close(), cmd.Wait()); err != nil {
		t.Error(err)
	}
}

func TestServe(t *testing.T) {
	t.Setenv("SECRET", "secret")
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	p, err := Serve(t.Context(), dir, log, "/bin/sh", "-c", `echo "in $PWD, SECRET=$SECRET"; exit 3`)
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	got := p.Failure(errors.New("not ready")).Error()
	for _, want := range []string{"sh: not ready", "exit status 3", log, "in " + dir + ", SECRET=\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("the failure does not say %q:\n%s", want, got)
		}
	}
	if err := errors.Join(p.Terminate(t.Context()), p.Kill()); err != nil {
		t.Errorf("stop what has ended: %v", err)
	}
}

func TestTerminate(t *testing.T) {
	for name, test := range map[string]struct {
		script  string
		stopped bool
	}{
		"willing": {"echo ready; exec tail -f /dev/null", true},
		"deaf":    {"trap '' TERM; echo ready; while :; do tail -f /dev/null; done", false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			fifo := filepath.Join(dir, "fifo")
			if err := syscall.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			p, err := Serve(t.Context(), dir, filepath.Join(dir, "log"), "/bin/sh", "-c", "exec >"+fifo+"; "+test.script)
			if err != nil {
				t.Fatal(err)
			}
			out, err := os.Open(fifo)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = out.Close() }()
			if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
				t.Fatalf("the process says %q, %v", line, err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			if !test.stopped {
				cancel()
			}
			defer cancel()
			if err := p.Terminate(ctx); (err == nil) != test.stopped {
				t.Errorf("error = %v, want an end: %v", err, test.stopped)
			}
			<-p.Done()
		})
	}
}

func TestTailIsWholeLines(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(log, []byte(strings.Repeat("a line\n", tailSize)), 0o600); err != nil {
		t.Fatal(err)
	}
	got := Tail(log)
	if len(got) > tailSize || !strings.HasPrefix(got, "a line\n") || !strings.HasSuffix(got, "\na line\n") {
		t.Errorf("tail of %d bytes: %.20q", len(got), got)
	}
	if got := Tail(log + ".none"); got != "" {
		t.Errorf("tail of nothing: %q", got)
	}
}

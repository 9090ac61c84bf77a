// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestLogs(t *testing.T) {
	o := newOutput()
	stdout, stderr := o.writer(streamStdout), o.writer(streamStderr)
	for _, write := range []struct {
		to   io.Writer
		text string
	}{{stdout, "one\ntw"}, {stderr, "oops\n"}, {stdout, "o\n"}, {stdout, "three"}} {
		if _, err := io.WriteString(write.to, write.text); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ query, want string }{
		{"", "one\noops\ntwo\n"},
		{"tailLines=1", "two\n"},
		{"tailLines=0", ""},
		{"tailLines=100", "one\noops\ntwo\n"},
		{"limitBytes=6", "one\noo"},
		{"limitBytes=4&tailLines=2", "oops"},
		{"stream=Stderr", "oops\n"},
		{"stream=All&tailLines=1", "two\n"},
		{"stream=Stdout&tailLines=2", "one\ntwo\n"},
		{"sinceSeconds=3600", "one\noops\ntwo\n"},
		{"sinceTime=2100-01-01T00:00:00Z", ""},
	} {
		if got := logs(t, o, test.query); got != test.want {
			t.Errorf("%q: got %q, want %q", test.query, got, test.want)
		}
	}
	for line := range strings.Lines(logs(t, o, "timestamps=true")) {
		stamp, _, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
			t.Errorf("timestamp of %q: %v", line, err)
		}
	}
	o.end()
	if got := logs(t, o, "follow=true&tailLines=1"); got != "three" {
		t.Errorf("the line without an end is %q", got)
	}
}

func logs(t *testing.T, o *output, query string) string {
	t.Helper()
	values, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	options, err := parseLogOptions(values)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := o.copyTo(t.Context(), &got, options); err != nil {
		t.Fatal(err)
	}
	return got.String()
}

func TestLogOptionsRefuseNonsense(t *testing.T) {
	for _, name := range []string{"follow", "timestamps", "tailLines", "limitBytes", "sinceSeconds", "sinceTime"} {
		_, err := parseLogOptions(url.Values{name: {"nonsense"}})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error = %v", name, err)
		}
	}
}

func TestFollow(t *testing.T) {
	o := newOutput()
	r, w := io.Pipe()
	result := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		err := o.copyTo(ctx, w, logOptions{follow: true, tail: -1, limit: -1})
		_ = w.Close()
		result <- err
	}()
	for range 3 {
		_, _ = io.WriteString(o.writer(streamStdout), "line\n")
		got := make([]byte, len("line\n"))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != "line\n" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want %v", err, context.Canceled)
	}
}

func TestAttach(t *testing.T) {
	o := newOutput()
	_, _ = io.WriteString(o.writer(streamStdout), "before\n")
	var stdout, stderr bytes.Buffer
	detach := o.attach(&stdout, &stderr)
	o.attach(writerFunc(func([]byte) (int, error) { return 0, io.ErrClosedPipe }), nil)
	for range 2 {
		_, _ = io.WriteString(o.writer(streamStdout), "now\n")
		_, _ = io.WriteString(o.writer(streamStderr), "oops\n")
	}
	detach()
	_, _ = io.WriteString(o.writer(streamStdout), "after\n")
	if stdout.String() != "now\nnow\n" || stderr.String() != "oops\noops\n" {
		t.Errorf("stdout = %q, stderr = %q", &stdout, &stderr)
	}
}

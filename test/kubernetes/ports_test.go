// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tailhelm/tailhelm/test/kubernetes/internal/process"
)

// TestTakenPortIsRetried has two servers end, as they do when their port is taken,
// before one stays.
func TestTakenPortIsRetried(t *testing.T) {
	ready := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer ready.Close()
	dir := t.TempDir()
	tries := 0
	err := retryPorts(t.Context(), func(ctx context.Context) error {
		tries++
		script, url := "echo bind: address already in use; exit 1", "http://"+address(1)
		if tries == 3 {
			script, url = "exec tail -f /dev/null", ready.URL
		}
		log, err := freshLog(filepath.Join(dir, "log"))
		if err != nil {
			return err
		}
		p, err := process.Serve(ctx, dir, log, "/bin/sh", "-c", script)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = p.Kill() })
		return waitReady(ctx, p, log, url, http.DefaultClient)
	})
	if err != nil || tries != 3 {
		t.Errorf("error = %v after %d tries, want none after 3", err, tries)
	}
}

func TestWaitReadySaysWhy(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	p, err := process.Serve(t.Context(), dir, log, "/bin/sh", "-c", "echo out of cheese; exit 2")
	if err != nil {
		t.Fatal(err)
	}
	err = waitReady(t.Context(), p, log, "http://"+address(1), http.DefaultClient)
	if err == nil || errors.Is(err, errPortTaken) {
		t.Fatalf("error = %v, want one, and not %v", err, errPortTaken)
	}
	for _, want := range []string{"exit status 2", "out of cheese"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error = %v, want %q in it", err, want)
		}
	}
}

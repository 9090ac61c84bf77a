// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	policy := filepath.Join(t.TempDir(), "policy.hujson")
	if err := os.WriteFile(policy, []byte(`{"grants": [{"src": ["*"], "dst": ["*"]}],}`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, stdout := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{
			"--json", "--no-https", "--policy", policy, "--user", "alice@example.com", "--tags", "tag:a,tag:b",
			"--oauth", "tag:k8s-operator", "--device", "laptop=alice@example.com",
		}, stdout, t.Output())
		_ = stdout.Close()
	}()
	var r report
	if err := json.NewDecoder(out).Decode(&r); err != nil {
		t.Fatal(err)
	}
	if len(r.Keys) != 2 || r.Keys[1].Identity != "tag:a,tag:b" || len(r.OAuthClients) != 1 || len(r.Devices) != 1 {
		t.Errorf("report = %+v", r)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL+"/key?v=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil {
		t.Error(err)
	}
	if res.StatusCode != http.StatusOK {
		t.Errorf("GET /key = %s", res.Status)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPrint(t *testing.T) {
	r := &report{URL: "http://x", Domain: "d", Keys: []keyReport{{"alice@example.com", "tskey-1"}}, Environment: []string{"A=b"}}
	var b bytes.Buffer
	if err := r.print(&b, false); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"http://x", "alice@example.com", "tskey-1", "export A=b"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, b.String())
		}
	}
}

func TestRunRefuses(t *testing.T) {
	for _, args := range [][]string{{"--device", "laptop"}, {"extra"}, {"--listen", "localhost"}, {"--nonsense"}, {"--no-https", "--policy", "/nonexistent"}} {
		if err := run(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("run %q worked", args)
		}
	}
}

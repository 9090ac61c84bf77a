// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"strings"
	"testing"
)

// run runs kubectl and returns what it wrote, both streams in one.
func run(t *testing.T, c *Cluster, args ...string) (string, error) {
	t.Helper()
	out, err := c.Kubectl(t.Context(), args...).CombinedOutput()
	return string(out), err
}

// must runs kubectl and fails the test if it fails.
func must(t *testing.T, c *Cluster, args ...string) string {
	t.Helper()
	out, err := run(t, c, args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func TestCluster(t *testing.T) {
	c := New(t, Options{})
	if out := must(t, c, "version"); !strings.Contains(out, "Server Version: v1.36.3") {
		t.Errorf("kubectl version says:\n%s", out)
	}
}

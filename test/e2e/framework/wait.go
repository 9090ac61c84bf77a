// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

// Wait waits until done is true. what says for what.
func Wait(t *testing.T, what string, done func(ctx context.Context) bool) {
	t.Helper()
	err := wait.PollUntilContextTimeout(t.Context(), 250*time.Millisecond, *patience, true, func(ctx context.Context) (bool, error) {
		return done(ctx), nil
	})
	if err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
}

// WaitReady waits until the operator has one pod, which is ready, and which is not the
// one of the given name. It returns the pod.
func (r *Release) WaitReady(t *testing.T, not string) corev1.Pod {
	t.Helper()
	var ready corev1.Pod
	Wait(t, "a ready pod of "+r.Namespace, func(ctx context.Context) bool {
		pods := r.Pods(ctx, t)
		if len(pods) != 1 || pods[0].Name == not || !podReady(&pods[0]) {
			return false
		}
		ready = pods[0]
		return true
	})
	return ready
}

// WaitReadyz waits until /readyz?verbose of the operator says all the parts.
func (r *Release) WaitReadyz(t *testing.T, parts ...string) {
	t.Helper()
	var last string
	defer func() {
		if t.Failed() {
			t.Logf("/readyz said last:\n%s", last)
		}
	}()
	Wait(t, "/readyz to say "+strings.Join(parts, ", "), func(ctx context.Context) bool {
		last = r.Readyz(ctx, t)
		for _, part := range parts {
			if !strings.Contains(last, part) {
				return false
			}
		}
		return true
	})
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
)

// TestDeletionWaitsForPods: for as long as they may drain, and no longer.
func TestDeletionWaitsForPods(t *testing.T) {
	const grace = 11 * time.Minute
	ago := func(d time.Duration) *metav1.Time { return &metav1.Time{Time: time.Now().Add(-d)} }
	for name, c := range map[string]struct {
		grace   time.Duration // of the pod's spec
		ends    time.Duration // when its grace period ends, after the parent's deletion; 0: nobody has deleted it
		phase   corev1.PodPhase
		abandon bool
		want    time.Duration // how long deletion waits for it, from the parent's deletion on
	}{
		"short grace period":         {30 * time.Second, 30 * time.Second, corev1.PodRunning, false, usual.drain},
		"long grace period":          {grace, grace + time.Second, corev1.PodRunning, false, grace + time.Second + killTime},
		"not yet deleted":            {grace, 0, corev1.PodRunning, false, grace + killTime},
		"deleted with a shorter one": {grace, time.Minute, corev1.PodRunning, false, usual.drain},
		"parent is abandoned":        {grace, grace, corev1.PodRunning, true, usual.drain},
		"has failed":                 {grace, grace, corev1.PodFailed, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := &v1alpha1.ProxyGroup{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: ago(0)}}
				if c.abandon {
					annotate(g, annotationAbandon, "true")
				}
				pod := &corev1.Pod{Spec: corev1.PodSpec{TerminationGracePeriodSeconds: new(int64(c.grace.Seconds()))}, Status: corev1.PodStatus{Phase: c.phase}}
				if c.ends > 0 {
					pod.DeletionTimestamp = ago(-c.ends)
				}
				f := &fleet{operator: &operator{config: Config{timing: usual}}, parent: g, replicas: []replica{{pod: pod}, {}}}
				if c.want > 0 {
					time.Sleep(c.want - time.Second)
					if f.draining() == "" || f.after != time.Second {
						t.Errorf("%q, and looks again in %v; want that it waits for a second more", f.draining(), f.after)
					}
					time.Sleep(time.Second)
				}
				if left := f.draining(); left != "" {
					t.Errorf("%s after %v", left, c.want)
				}
			})
		})
	}
}

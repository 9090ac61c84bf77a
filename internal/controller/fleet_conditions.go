// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/health"
	"github.com/tailhelm/tailhelm/internal/tailapi"
)

// condition sets one condition. Its message is bounded here, whoever said what is in it.
func (f *fleet) condition(kind string, status metav1.ConditionStatus, reason, message string) bool {
	return meta.SetStatusCondition(&f.status().Conditions, metav1.Condition{
		Type: kind, Status: status, Reason: reason, Message: plain(message, maxMessage), ObservedGeneration: f.parent.GetGeneration(),
	})
}

// count counts the wanted replicas for which holds is true.
func (f *fleet) count(holds func(replica) bool) int {
	n := 0
	for _, r := range f.wanted() {
		if holds(r) {
			n++
		}
	}
	return n
}

// setAPI tells whether the Tailscale API can be used. answered says that it has been
// asked; before, the last answer counts.
func (f *fleet) setAPI(answered bool) {
	var e *tailapi.Error
	switch {
	case errors.As(f.apiErr, &e):
		if f.condition(v1alpha1.TailscaleAPIAvailable, metav1.ConditionFalse, string(e.Kind), e.Error()) {
			f.event(corev1.EventTypeWarning, "TailscaleAPIFailed", "UseTailscaleAPI", "%s", e.Error())
		}
	case answered:
		f.condition(v1alpha1.TailscaleAPIAvailable, metav1.ConditionTrue, reasonReachable, "the Tailscale API answers")
	}
}

// tellReady sets the condition that all is ready, and tells of it in an event when it has
// changed. quiet is for what is nothing to tell of.
func (f *fleet) tellReady(status metav1.ConditionStatus, reason, message string, quiet bool) {
	before := meta.FindStatusCondition(f.seen.ReplicaStatus().Conditions, f.kind.ready)
	f.condition(f.kind.ready, status, reason, message)
	switch {
	case quiet || before != nil && before.Reason == reason && before.Status == status:
	case status == metav1.ConditionTrue:
		f.event(corev1.EventTypeNormal, reason, "Reconcile", "%s", message)
	default:
		f.event(corev1.EventTypeWarning, reason, "Reconcile", "%s", message)
	}
}

// missing says what each replica that is not ready lacks.
func (f *fleet) missing() string {
	var t tally
	for _, r := range f.wanted() {
		switch noKey := f.waitsForKey(r); {
		case f.ready(r):
			continue
		case noKey != "":
			t.add(r.ordinal, noKey)
		case r.pod == nil:
			t.add(r.ordinal, "has no pod")
		case !r.live():
			t.add(r.ordinal, "its pod is "+podState(r.pod))
		case !f.current(r):
			t.add(r.ordinal, "is about to be replaced")
		case len(r.checks()) == 0:
			t.add(r.ordinal, "its pod is not ready yet")
		default:
			t.add(r.ordinal, firstCheck(r.checks()))
		}
	}
	if len(t.reasons) == 0 {
		return ""
	}
	return "; " + t.String()
}

// firstCheck returns what fails first, in the order in which a replica comes up.
func firstCheck(checks map[string]string) string {
	for _, name := range health.Order {
		if reason := checks[name]; reason != "" {
			return name + ": " + reason
		}
	}
	for _, name := range slices.Sorted(maps.Keys(checks)) {
		return name + ": " + checks[name]
	}
	return ""
}

// podState says what a pod waits for, as far as its status tells.
func podState(pod *corev1.Pod) string {
	if pod.DeletionTimestamp != nil {
		return "terminating"
	}
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Waiting != nil && c.State.Waiting.Reason != "" {
			return strings.TrimSpace(c.State.Waiting.Reason + " " + c.State.Waiting.Message)
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return c.Reason + ": " + c.Message
		}
	}
	return "starting"
}

// setDevices lists the devices of replicas whose pods run now.
func (f *fleet) setDevices() {
	status := f.status()
	status.Devices = nil
	for _, r := range f.replicas {
		name, _ := r.hostname()
		if !r.live() || r.deviceID() == "" || name == "" {
			continue
		}
		device := v1alpha1.TailnetDevice{Hostname: name, TailnetIPs: r.ips()}
		if r.config != nil && len(r.config.Data[keyStaticEndpoints]) > 0 {
			device.StaticEndpoints = strings.Split(string(r.config.Data[keyStaticEndpoints]), ",")
		}
		if !slices.ContainsFunc(status.Devices, func(d v1alpha1.TailnetDevice) bool { return d.Hostname == name }) {
			status.Devices = append(status.Devices, device)
		}
	}
}

// setDeleting tells what deletion waits for.
func (f *fleet) setDeleting(left string) {
	before := meta.FindStatusCondition(f.seen.ReplicaStatus().Conditions, f.kind.ready)
	f.condition(f.kind.ready, metav1.ConditionFalse, f.kind.deleting, left)
	if f.apiErr != nil && (before == nil || before.Message != left) {
		f.event(corev1.EventTypeWarning, "DeletionPending", "Delete", "%s", left)
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
)

// delete takes a parent apart: its replicas first, so that they withdraw and drain, then
// what is in the tailnet, then the rest.
func (f *fleet) delete(ctx context.Context) (ctrl.Result, error) {
	if !controllerutil.ContainsFinalizer(f.parent, finalizer) {
		f.forget(f.parent.GetUID())
		return ctrl.Result{}, nil
	}
	left, err := f.takeApart(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	if left != "" {
		f.setDeleting(left)
		if err := f.writeStatus(ctx); err != nil {
			return ctrl.Result{}, err
		}
		return ctrl.Result{RequeueAfter: f.after}, nil
	}
	base := copyOf(f.parent)
	controllerutil.RemoveFinalizer(f.parent, finalizer)
	err = f.client.Patch(ctx, f.parent, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("removing the finalizer: %w", err)
	}
	f.forget(f.parent.GetUID())
	return ctrl.Result{}, nil
}

// takeApart returns what is left to do, or "" when the parent can go.
func (f *fleet) takeApart(ctx context.Context) (left string, err error) {
	if err := f.observe(ctx); err != nil {
		return "", err
	}
	if err := f.noteDevices(ctx); err != nil {
		return "", err
	}
	if err := f.set.Delete(ctx, appsv1.SchemeGroupVersion.WithKind("StatefulSet")); err != nil {
		return "", err
	}
	if left := f.draining(); left != "" {
		return left, nil
	}
	if err := f.leaveTailnet(ctx); err != nil {
		left := f.leftovers()
		if !f.mayAbandon() {
			if other := f.noteAPI(err); other != nil {
				return "", other
			}
			return fmt.Sprintf("still in the tailnet: %s. %v. It is tried again until %s; to leave it there at once, annotate this %s with %s=true",
				left, err, f.abandonAt().UTC().Format(time.RFC3339), f.kind.name, annotationAbandon), nil
		}
		f.event(corev1.EventTypeWarning, "TailnetObjectsAbandoned", "Delete", "left in the tailnet, delete it in the admin console: %s (%v)", left, err)
		f.config.Log.WarnContext(ctx, "not all of what is deleted is gone from the tailnet", f.kind.label, f.parent.GetName(), "services", f.tailnetObjects().Services, "devices", f.tailnetObjects().Devices, "error", err)
	}
	if err := f.set.Prune(ctx, nil); err != nil {
		return "", err
	}
	return "", f.deleteSecrets(ctx)
}

// draining returns for how many pods deletion waits, in words; "" when it does not.
// A pod whose node is dead never ends, so the wait is bounded.
func (f *fleet) draining() string {
	pods := f.pods()
	until := f.drainedBy(pods)
	wait := time.Until(until)
	if len(pods) == 0 || wait <= 0 {
		return ""
	}
	f.lookAgain(wait)
	return fmt.Sprintf("waiting for %d pods to end, until %s at most", len(pods), until.UTC().Format(time.RFC3339))
}

// pods returns the replicas' pods that have not ended.
func (f *fleet) pods() []*corev1.Pod {
	var pods []*corev1.Pod
	for _, r := range f.replicas {
		if r.pod != nil && r.pod.Status.Phase != corev1.PodSucceeded && r.pod.Status.Phase != corev1.PodFailed {
			pods = append(pods, r.pod)
		}
	}
	return pods
}

// killTime is how long after the end of its grace period a pod can still be there: the
// kubelet ends its processes then, and says so.
const killTime = 10 * time.Second

// drainedBy returns when pods have had their time to end: timing.drain, and their grace
// periods where those are longer, because sessions may go on for that long. Who wants the
// parent gone at once, as cleanup does before an uninstallation, does not wait for these.
func (f *fleet) drainedBy(pods []*corev1.Pod) time.Time {
	deleted := f.parent.GetDeletionTimestamp()
	until := deleted.Add(f.config.timing.drain)
	if f.mayAbandon() {
		return until
	}
	for _, pod := range pods {
		end := deleted.Add(time.Duration(ptr.Deref(pod.Spec.TerminationGracePeriodSeconds, 0)) * time.Second)
		if pod.DeletionTimestamp != nil {
			end = pod.DeletionTimestamp.Time // its grace period included
		}
		if end = end.Add(killTime); end.After(until) {
			until = end
		}
	}
	return until
}

// leaveTailnet deletes what the parent has in the tailnet: all of it, or as much as can
// be deleted now.
func (f *fleet) leaveTailnet(ctx context.Context) error {
	errs := []error{f.leave(ctx)}
	for _, id := range slices.Clone(f.tailnetObjects().Devices) {
		errs = append(errs, f.deleteNoted(ctx, id))
	}
	for _, r := range f.replicas {
		if r.config != nil && r.config.Annotations[annotationKeyID] != "" {
			f.revoke(ctx, r.config.Annotations[annotationKeyID])
		}
	}
	return errors.Join(errs...)
}

// leftovers names what the parent has in the tailnet.
func (f *fleet) leftovers() string {
	t := f.tailnetObjects()
	var left []string
	if len(t.Services) > 0 {
		left = append(left, "Tailscale Service "+listed(t.Services))
	}
	if len(t.Devices) > 0 {
		left = append(left, "device "+listed(t.Devices))
	}
	return strings.Join(left, ", ")
}

// abandonAt is when deletion stops trying.
func (f *fleet) abandonAt() time.Time {
	return f.parent.GetDeletionTimestamp().Add(f.config.timing.abandon)
}

// mayAbandon reports whether what is in the tailnet may stay there.
func (f *fleet) mayAbandon() bool {
	return f.parent.GetAnnotations()[annotationAbandon] == "true" || time.Now().After(f.abandonAt())
}

// deleteSecrets deletes the parent's Secrets.
func (f *fleet) deleteSecrets(ctx context.Context) error {
	secrets := []*corev1.Secret{f.shared}
	for _, r := range f.replicas {
		secrets = append(secrets, r.state, r.config)
	}
	var errs []error
	for _, s := range secrets {
		if s == nil {
			continue
		}
		if err := f.client.Delete(ctx, s); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("deleting Secret %s: %w", s.Name, err))
		}
	}
	return errors.Join(errs...)
}

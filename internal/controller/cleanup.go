// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	typedappsv1 "k8s.io/client-go/kubernetes/typed/apps/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/tailapi"
	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// cleanupInterval is how often cleanup looks whether something is gone.
const cleanupInterval = 500 * time.Millisecond

// Cleanup leaves nothing of an operator behind: it is run while the operator still
// runs, before it is uninstalled.
type Cleanup struct {
	// API is the way to the Tailscale API; nil when there is none.
	API *tailapi.Client
	// Cluster is the way to the API server.
	Cluster *rest.Config
	// Deployment is the operator's.
	Deployment string
	// Log gets what happens.
	Log *slog.Logger
	// Namespace is the operator's.
	Namespace string
	// Operator is the name by which groups are the operator's (see Config.Operator).
	Operator string
	// StateSecret holds the state of the operator's own device.
	StateSecret string
	// Timeout bounds the whole. A quarter of it, at most a minute, is for the operator's
	// device at the end. After half of the rest, what is in the tailnet may stay there;
	// after three quarters, groups go without their operator.
	Timeout time.Duration

	client client.Client
	apps   typedappsv1.AppsV1Interface
	core   typedcorev1.CoreV1Interface
}

// Run deletes the operator's ProxyGroups and Recorders, stops the operator, and deletes its device and
// the state of it. What cannot be deleted is logged: an uninstallation must end. Only an
// API server that cannot be asked is an error.
func (c Cleanup) Run(ctx context.Context) error {
	s, err := scheme()
	if err != nil {
		return fmt.Errorf("the types of our kinds: %w", err)
	}
	if c.client, err = client.New(c.Cluster, client.Options{Scheme: s}); err != nil {
		return fmt.Errorf("a client for the API server: %w", err)
	}
	if c.apps, err = typedappsv1.NewForConfig(c.Cluster); err != nil {
		return fmt.Errorf("a client for the API server: %w", err)
	}
	if c.core, err = typedcorev1.NewForConfig(c.Cluster); err != nil {
		return fmt.Errorf("a client for the API server: %w", err)
	}
	whole, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	ctx, cancel = context.WithTimeout(whole, c.forParents())
	defer cancel()
	if err := c.deleteParents(ctx); err != nil {
		return err
	}
	stopped, err := c.stopOperator(ctx)
	if err != nil {
		return err
	}
	if !stopped {
		// It would join again as another device, whose state nobody has then. To end it by
		// force, a right to delete all pods of the namespace would be needed.
		c.Log.WarnContext(ctx, "the operator's pod has not ended in time, so its device and the Secret with its state are left: install again and uninstall, "+
			"or delete the device in the admin console and then the Secret, once the pod has ended", "deployment", c.Deployment, "secret", c.Namespace+"/"+c.StateSecret)
		return nil
	}
	return c.deleteDevice(whole)
}

// forParents is how much of the timeout there is before the operator's device has its turn.
func (c Cleanup) forParents() time.Duration { return c.Timeout - min(c.Timeout/4, time.Minute) }

// parents returns the ProxyGroups and Recorders of the operator.
func (c Cleanup) parents(ctx context.Context) ([]parent, error) {
	var own []parent
	add := func(object parent) {
		if object.GetAnnotations()[annotationOperator] == c.Operator {
			own = append(own, object)
		}
	}
	var groups v1alpha1.ProxyGroupList
	if err := c.list(ctx, &groups); err != nil {
		return nil, fmt.Errorf("listing ProxyGroups: %w", err)
	}
	for i := range groups.Items {
		add(&groups.Items[i])
	}
	var recorders v1alpha1.RecorderList
	if err := c.list(ctx, &recorders); err != nil {
		return nil, fmt.Errorf("listing Recorders: %w", err)
	}
	for i := range recorders.Items {
		add(&recorders.Items[i])
	}
	return own, nil
}

// list reads a list, which is empty when its kind is not installed.
func (c Cleanup) list(ctx context.Context, list client.ObjectList) error {
	err := c.client.List(ctx, list)
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// kindOf names the kind of a parent.
func kindOf(object parent) string {
	if _, ok := object.(*v1alpha1.Recorder); ok {
		return kindRecorder
	}
	return kindProxyGroup
}

// cleanupStep is how firmly ProxyGroups and Recorders are deleted for a while.
type cleanupStep struct {
	firmness string
	do       func(context.Context, parent) error
	wait     time.Duration
}

// deleteParents deletes the ProxyGroups and Recorders, more and more firmly.
func (c Cleanup) deleteParents(ctx context.Context) error {
	for _, step := range []cleanupStep{
		{"", func(ctx context.Context, object parent) error { return c.client.Delete(ctx, object) }, c.forParents() / 2},
		{"what it has in the tailnet may stay there now", c.abandon, c.forParents() / 4},
		{"its finalizer is removed, because the operator does not work; look for its Service and devices in the admin console", c.release, c.forParents() / 8},
	} {
		if gone, err := c.try(ctx, step); gone || err != nil {
			return err
		}
	}
	c.Log.WarnContext(ctx, "ProxyGroups or Recorders are left; delete them by hand")
	return nil
}

// try does a step to each ProxyGroup and Recorder, and returns whether all are gone when
// its time is over. It is an error when the step could not be done to all: the next one
// relies on it.
func (c Cleanup) try(ctx context.Context, step cleanupStep) (gone bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, step.wait)
	defer cancel()
	done := sets.New[types.UID]()
	return c.poll(ctx, func(ctx context.Context) (bool, error) {
		parents, err := c.parents(ctx)
		if err != nil {
			return false, err
		}
		var errs []error
		for _, object := range parents {
			if done.Has(object.GetUID()) {
				continue
			}
			c.Log.InfoContext(ctx, "deleting what the operator keeps", "kind", kindOf(object), "name", object.GetName(), "note", step.firmness)
			if err := c.change(ctx, object, step.do); err != nil {
				errs = append(errs, fmt.Errorf("deleting %s %s: %w", kindOf(object), object.GetName(), err))
				continue
			}
			done.Insert(object.GetUID())
		}
		return len(parents) == 0, errors.Join(errs...)
	})
}

// poll calls check until it returns true, or ctx ends, and returns which. An error of check
// is logged, and it is called again: an API server fails a request now and then, and what
// is left behind stays. The last error is returned when there was nothing but errors.
func (c Cleanup) poll(ctx context.Context, check func(context.Context) (bool, error)) (done bool, err error) {
	var last error
	answered := false
	err = wait.PollUntilContextCancel(ctx, cleanupInterval, true, func(ctx context.Context) (bool, error) {
		done, err := check(ctx)
		if err == nil {
			answered = true
		} else if last == nil || last.Error() != err.Error() {
			c.Log.WarnContext(ctx, "cleaning up; tried again while there is time", "error", err)
		}
		last = err
		return done && err == nil, nil
	})
	if err == nil || answered {
		return err == nil, nil
	}
	return false, cmp.Or(last, err)
}

// change does something to a parent, which its operator may change at the same time.
func (c Cleanup) change(ctx context.Context, object parent, do func(context.Context, parent) error) error {
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		err := do(ctx, object)
		if !apierrors.IsConflict(err) {
			return err
		}
		parents, e := c.parents(ctx) // there is no right to get one
		if i := slices.IndexFunc(parents, func(now parent) bool { return now.GetUID() == object.GetUID() }); i >= 0 {
			object = parents[i]
		} else if e == nil {
			return nil // gone
		}
		return errors.Join(e, err)
	})
	return client.IgnoreNotFound(err)
}

func (c Cleanup) abandon(ctx context.Context, object parent) error {
	base := copyOf(object)
	annotate(object, annotationAbandon, "true")
	return c.client.Patch(ctx, object, client.MergeFrom(base))
}

func (c Cleanup) release(ctx context.Context, object parent) error {
	base := copyOf(object)
	controllerutil.RemoveFinalizer(object, finalizer) // others' are theirs to remove
	return c.client.Patch(ctx, object, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}))
}

// stopOperator scales the Deployment to zero and waits until its pods have ended. It
// returns whether they have.
func (c Cleanup) stopOperator(ctx context.Context) (stopped bool, err error) {
	deployments := c.apps.Deployments(c.Namespace)
	return c.poll(ctx, func(ctx context.Context) (bool, error) {
		d, err := deployments.Get(ctx, c.Deployment, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		} else if err != nil {
			return false, fmt.Errorf("reading Deployment %s: %w", c.Deployment, err)
		}
		if ptr.Deref(d.Spec.Replicas, 1) != 0 {
			patch := []byte(`{"spec":{"replicas":0}}`)
			if _, err := deployments.Patch(ctx, c.Deployment, types.MergePatchType, patch, metav1.PatchOptions{}, "scale"); err != nil {
				return false, fmt.Errorf("stopping Deployment %s: %w", c.Deployment, err)
			}
		}
		pods, err := c.core.Pods(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
		if err != nil {
			return false, fmt.Errorf("waiting for the operator's pod to end: %w", err)
		}
		return !slices.ContainsFunc(pods.Items, func(pod corev1.Pod) bool {
			return pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed // one that was evicted stays
		}), nil
	})
}

// deleteDevice deletes the operator's own device, and its state. The state of a device
// that cannot be deleted stays: with it, the next installation is that device, and can delete it.
func (c Cleanup) deleteDevice(ctx context.Context) error {
	secret := &corev1.Secret{}
	err := c.client.Get(ctx, types.NamespacedName{Namespace: c.Namespace, Name: c.StateSecret}, secret)
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading Secret %s: %w", c.StateSecret, err)
	}
	if stored := tailnet.DeviceOf(secret.Data); stored.ID != "" {
		if err := c.deleteOwn(ctx, stored); err != nil {
			c.Log.WarnContext(ctx, "the operator's device and the Secret with its state are left: install again and uninstall when the cause is gone, "+
				"or delete the device in the admin console and then the Secret", "device", stored.ID, "secret", c.Namespace+"/"+c.StateSecret, "error", err)
			return nil
		}
	}
	if err := c.client.Delete(ctx, secret); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("deleting Secret %s: %w", c.StateSecret, err)
	}
	return nil
}

// deleteOwn deletes the device whose state is known, if that is who it says.
func (c Cleanup) deleteOwn(ctx context.Context, stored tailnet.StoredDevice) error {
	if c.API == nil {
		return errNoAPI
	}
	is := tailapi.DeviceIdentity{Hostname: stored.Hostname, Tags: stored.Tags}
	d, err := c.API.OwnDevice(ctx, stored.ID, is.Equal)
	if err != nil || d == nil {
		return err
	}
	return c.API.DeleteDevice(ctx, *d)
}

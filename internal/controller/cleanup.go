// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
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
	"k8s.io/apimachinery/pkg/util/wait"
	typedappsv1 "k8s.io/client-go/kubernetes/typed/apps/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
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
	// Timeout bounds the whole. After half of it, what is in the tailnet may stay there;
	// after three quarters, groups go without their operator.
	Timeout time.Duration

	client client.Client
	apps   typedappsv1.AppsV1Interface
	core   typedcorev1.CoreV1Interface
}

// Run deletes the operator's groups, stops the operator, and deletes its device and
// the state of it. What cannot be deleted is logged: an uninstallation must end. Only an
// API server that cannot be asked is an error.
func (c Cleanup) Run(ctx context.Context) error {
	s, err := scheme()
	if err != nil {
		return fmt.Errorf("the types of groups: %w", err)
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
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	if err := c.deleteGroups(ctx); err != nil {
		return err
	}
	if err := c.stopOperator(ctx); err != nil {
		return err
	}
	return c.deleteDevice(ctx)
}

// groups returns those of the operator.
func (c Cleanup) groups(ctx context.Context) ([]v1alpha1.ProxyGroup, error) {
	var list v1alpha1.ProxyGroupList
	if err := c.client.List(ctx, &list); meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return nil, nil // the kind is not installed
	} else if err != nil {
		return nil, fmt.Errorf("listing ProxyGroups: %w", err)
	}
	var own []v1alpha1.ProxyGroup
	for _, g := range list.Items {
		if g.Annotations[annotationOperator] == c.Operator {
			own = append(own, g)
		}
	}
	return own, nil
}

// deleteGroups deletes the groups, more and more firmly.
func (c Cleanup) deleteGroups(ctx context.Context) error {
	steps := []struct {
		firmness string
		do       func(context.Context, *v1alpha1.ProxyGroup) error
		wait     time.Duration
	}{
		{"", func(ctx context.Context, g *v1alpha1.ProxyGroup) error { return c.client.Delete(ctx, g) }, c.Timeout / 2},
		{"what it has in the tailnet may stay there now", c.abandon, c.Timeout / 4},
		{"its finalizer is removed, because the operator does not work; look for its Service and devices in the admin console", c.release, c.Timeout / 8},
	}
	for _, step := range steps {
		groups, err := c.groups(ctx)
		if err != nil {
			return err
		}
		for i := range groups {
			c.Log.InfoContext(ctx, "deleting a ProxyGroup", "name", groups[i].Name, "note", step.firmness)
			if err := c.change(ctx, &groups[i], step.do); err != nil {
				return fmt.Errorf("deleting ProxyGroup %s: %w", groups[i].Name, err)
			}
		}
		err = wait.PollUntilContextTimeout(ctx, cleanupInterval, step.wait, true, func(ctx context.Context) (bool, error) {
			groups, err := c.groups(ctx)
			return len(groups) == 0, err
		})
		if err == nil {
			return nil
		} else if !wait.Interrupted(err) {
			return err
		}
	}
	c.Log.WarnContext(ctx, "ProxyGroups are left; delete them by hand")
	return nil
}

// change does something to a group, which its operator may change at the same time.
func (c Cleanup) change(ctx context.Context, g *v1alpha1.ProxyGroup, do func(context.Context, *v1alpha1.ProxyGroup) error) error {
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		err := do(ctx, g)
		if !apierrors.IsConflict(err) {
			return err
		}
		groups, e := c.groups(ctx) // there is no right to get one
		if i := slices.IndexFunc(groups, func(now v1alpha1.ProxyGroup) bool { return now.UID == g.UID }); i >= 0 {
			*g = groups[i]
		} else if e == nil {
			return nil // gone
		}
		return errors.Join(e, err)
	})
	return client.IgnoreNotFound(err)
}

func (c Cleanup) abandon(ctx context.Context, g *v1alpha1.ProxyGroup) error {
	base := g.DeepCopy()
	annotate(g, annotationAbandon, "true")
	return c.client.Patch(ctx, g, client.MergeFrom(base))
}

func (c Cleanup) release(ctx context.Context, g *v1alpha1.ProxyGroup) error {
	base := g.DeepCopy()
	controllerutil.RemoveFinalizer(g, finalizer) // others' are theirs to remove
	return c.client.Patch(ctx, g, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}))
}

// stopOperator scales the Deployment to zero and waits until its pods are gone: a
// running operator would join the tailnet anew.
func (c Cleanup) stopOperator(ctx context.Context) error {
	deployments := c.apps.Deployments(c.Namespace)
	d, err := deployments.Get(ctx, c.Deployment, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading Deployment %s: %w", c.Deployment, err)
	}
	patch := []byte(`{"spec":{"replicas":0}}`)
	if _, err := deployments.Patch(ctx, c.Deployment, types.MergePatchType, patch, metav1.PatchOptions{}, "scale"); err != nil {
		return fmt.Errorf("stopping Deployment %s: %w", c.Deployment, err)
	}
	selector := metav1.FormatLabelSelector(d.Spec.Selector)
	err = wait.PollUntilContextCancel(ctx, cleanupInterval, true, func(ctx context.Context) (bool, error) {
		pods, err := c.core.Pods(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		return err == nil && len(pods.Items) == 0, err
	})
	if wait.Interrupted(err) {
		c.Log.WarnContext(ctx, "the operator's pod has not ended in time", "deployment", c.Deployment)
		return nil
	} else if err != nil {
		return fmt.Errorf("waiting for the operator's pod to end: %w", err)
	}
	return nil
}

// deleteDevice deletes the operator's own device, and its state. The state of a device
// that cannot be deleted stays: with it, the next installation is that device, and can delete it.
func (c Cleanup) deleteDevice(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
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

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
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
)

// reconcileDeletion takes a group apart: its replicas first, so that they withdraw and
// drain, then what is in the tailnet, then the rest.
func (g *groups) reconcileDeletion(ctx context.Context, group *v1alpha1.ProxyGroup) (ctrl.Result, error) {
	if !controllerutil.ContainsFinalizer(group, finalizer) {
		g.forget(group.UID)
		return ctrl.Result{}, nil
	}
	p := g.newPass(group)
	left, err := p.takeApart(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	if left != "" {
		p.setDeleting(left)
		if err := p.writeStatus(ctx); err != nil {
			return ctrl.Result{}, err
		}
		return ctrl.Result{RequeueAfter: p.after}, nil
	}
	base := group.DeepCopy()
	controllerutil.RemoveFinalizer(group, finalizer)
	err = g.client.Patch(ctx, group, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}))
	if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("removing the finalizer: %w", err)
	}
	g.forget(group.UID)
	return ctrl.Result{}, nil
}

// takeApart returns what is left to do, or "" when the group can go.
func (p *pass) takeApart(ctx context.Context) (left string, err error) {
	if err := p.observe(ctx); err != nil {
		return "", err
	}
	if err := p.noteDevices(ctx); err != nil {
		return "", err
	}
	if err := p.set.Delete(ctx, appsv1.SchemeGroupVersion.WithKind("StatefulSet")); err != nil {
		return "", err
	}
	if left := p.draining(); left != "" {
		return left, nil
	}
	if err := p.leaveTailnet(ctx); err != nil {
		left := p.leftovers()
		if !p.mayAbandon() {
			_ = p.noteAPI(err)
			return fmt.Sprintf("still in the tailnet: %s. %v. It is tried again until %s; to leave it there at once, annotate this ProxyGroup with %s=true",
				left, err, p.abandonAt().UTC().Format(time.RFC3339), annotationAbandon), nil
		}
		p.event(p.group, corev1.EventTypeWarning, "TailnetObjectsAbandoned", "Delete", "left in the tailnet, delete it in the admin console: %s (%v)", left, err)
		p.config.Log.WarnContext(ctx, "the group is gone, but not all of it from the tailnet", "proxyGroup", p.group.Name, "services", p.tailnetObjects().Services, "devices", p.tailnetObjects().Devices, "error", err)
	}
	if err := p.set.Prune(ctx, nil); err != nil {
		return "", err
	}
	return "", p.deleteSecrets(ctx)
}

// draining returns for how many pods deletion waits, in words; "" when it does not.
// A pod whose node is dead never ends, so the wait is bounded.
func (p *pass) draining() string {
	pods := 0
	for _, r := range p.replicas {
		if r.pod != nil && r.pod.Status.Phase != corev1.PodSucceeded && r.pod.Status.Phase != corev1.PodFailed {
			pods++
		}
	}
	wait := time.Until(p.group.DeletionTimestamp.Add(p.config.timing.drain))
	if pods == 0 || wait <= 0 {
		return ""
	}
	p.lookAgain(wait)
	return fmt.Sprintf("waiting for %d pods to end", pods)
}

// leaveTailnet deletes what the group has in the tailnet: all of it, or as much as can
// be deleted now.
func (p *pass) leaveTailnet(ctx context.Context) error {
	var errs []error
	t := p.tailnetObjects()
	for _, name := range slices.Clone(t.Services) {
		errs = append(errs, p.deleteService(ctx, name))
	}
	for _, id := range slices.Clone(t.Devices) {
		errs = append(errs, p.deleteNoted(ctx, id))
	}
	for _, r := range p.replicas {
		if r.config != nil && r.config.Annotations[annotationKeyID] != "" {
			p.revoke(ctx, r.config.Annotations[annotationKeyID])
		}
	}
	api, _ := firstAPI(errs...)
	return api
}

// leftovers names what the group has in the tailnet.
func (p *pass) leftovers() string {
	t := p.tailnetObjects()
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
func (p *pass) abandonAt() time.Time {
	return p.group.DeletionTimestamp.Add(p.config.timing.abandon)
}

// mayAbandon reports whether what is in the tailnet may stay there.
func (p *pass) mayAbandon() bool {
	return p.group.Annotations[annotationAbandon] == "true" || time.Now().After(p.abandonAt())
}

// deleteSecrets deletes the group's Secrets.
func (p *pass) deleteSecrets(ctx context.Context) error {
	secrets := []*corev1.Secret{p.tls}
	for _, r := range p.replicas {
		secrets = append(secrets, r.state, r.config)
	}
	var errs []error
	for _, s := range secrets {
		if s == nil {
			continue
		}
		if err := p.client.Delete(ctx, s); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("deleting Secret %s: %w", s.Name, err))
		}
	}
	return errors.Join(errs...)
}

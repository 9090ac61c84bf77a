// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"cmp"
	"context"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlcontroller "sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// setup makes the controllers and what wakes them; that of Recorders if withRecorders.
func (c Config) setup(manager ctrl.Manager, cluster string, withRecorders bool) error {
	o := &operator{
		config: c, client: manager.GetClient(), live: manager.GetAPIReader(),
		events: manager.GetEventRecorder("tailhelm-operator"), breaker: &breaker{api: c.API, timing: c.timing},
		pruned: map[types.UID]string{},
	}
	g := &groups{operator: o, cluster: cluster, verified: map[types.UID]verification{}}
	own := handler.EnqueueRequestsFromMapFunc(proxyGroupKind.parentOf)
	every := handler.EnqueueRequestsFromMapFunc(g.all)
	err := o.builder(manager, proxyGroupKind, &v1alpha1.ProxyGroup{}).
		Watches(&corev1.Service{}, own).
		Watches(&corev1.ServiceAccount{}, handler.EnqueueRequestsFromMapFunc(g.ofServiceAccount)).
		Watches(&v1alpha1.ProxyClass{}, handler.EnqueueRequestsFromMapFunc(g.ofClass), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Watches(&corev1.Node{}, every, builder.WithPredicates(predicate.Funcs{UpdateFunc: nodeChanged})).
		Complete(g)
	if err != nil {
		return err
	}
	if withRecorders {
		err := o.builder(manager, recorderKind, &v1alpha1.Recorder{}).
			Watches(&corev1.ServiceAccount{}, handler.EnqueueRequestsFromMapFunc(recorderKind.parentOf)).
			Complete(&recorders{o})
		if err != nil {
			return err
		}
	}
	return ctrl.NewControllerManagedBy(manager).Named("proxyclass").
		For(&v1alpha1.ProxyClass{}, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		Complete(&classes{client: manager.GetClient()})
}

// builder returns a controller of a kind of parents that is woken by a change of them, and
// of what all kinds of them have.
func (o *operator) builder(manager ctrl.Manager, k kind, object parent) *builder.Builder {
	own := handler.EnqueueRequestsFromMapFunc(k.parentOf)
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](o.config.timing.backoff/4, o.config.timing.backoffMax)
	return ctrl.NewControllerManagedBy(manager).Named(k.label).
		For(object, builder.WithPredicates(predicate.Or(predicate.GenerationChangedPredicate{}, predicate.AnnotationChangedPredicate{}))).
		Watches(&corev1.Secret{}, own, builder.WithPredicates(predicate.Funcs{UpdateFunc: secretChanged})).
		Watches(&corev1.Pod{}, own).
		Watches(&appsv1.StatefulSet{}, own).
		Watches(&rbacv1.Role{}, own).
		Watches(&rbacv1.RoleBinding{}, own).
		Watches(&policyv1.PodDisruptionBudget{}, own).
		WithOptions(ctrlcontroller.Options{RateLimiter: limiter})
}

// parentOf returns the parent of the kind that an object belongs to, by its labels.
func (k kind) parentOf(_ context.Context, object client.Object) []reconcile.Request {
	l := object.GetLabels()
	if l[labelParentType] != k.label || l[labelParent] == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: l[labelParent]}}}
}

// all returns all groups.
func (g *groups) all(ctx context.Context, _ client.Object) []reconcile.Request {
	return g.where(ctx, func(*v1alpha1.ProxyGroup) bool { return true })
}

// where returns the groups for which holds is true.
func (g *groups) where(ctx context.Context, holds func(*v1alpha1.ProxyGroup) bool) []reconcile.Request {
	var list v1alpha1.ProxyGroupList
	if err := g.client.List(ctx, &list); err != nil {
		g.config.Log.WarnContext(ctx, "listing ProxyGroups", "error", err)
		return nil
	}
	var requests []reconcile.Request
	for i := range list.Items {
		if holds(&list.Items[i]) {
			requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Name: list.Items[i].Name}})
		}
	}
	return requests
}

// ofClass returns the groups that use a ProxyClass.
func (g *groups) ofClass(ctx context.Context, class client.Object) []reconcile.Request {
	return g.where(ctx, func(group *v1alpha1.ProxyGroup) bool {
		return cmp.Or(group.Spec.ProxyClass, g.config.DefaultClass) == class.GetName()
	})
}

// ofServiceAccount returns the groups that a ServiceAccount is about: its own, or all
// that impersonate with it.
func (g *groups) ofServiceAccount(ctx context.Context, account client.Object) []reconcile.Request {
	if account.GetName() == g.config.Impersonator {
		return g.all(ctx, account)
	}
	return proxyGroupKind.parentOf(ctx, account)
}

// secretChanged reports whether a change of a Secret is news to the controller. Most
// are not: a device keeps its whole state there.
func secretChanged(e event.UpdateEvent) bool {
	before, ok := e.ObjectOld.(*corev1.Secret)
	after, ok2 := e.ObjectNew.(*corev1.Secret)
	if !ok || !ok2 || !maps.Equal(before.Labels, after.Labels) || !equality.Semantic.DeepEqual(before.OwnerReferences, after.OwnerReferences) {
		return true
	}
	for _, key := range []string{
		tailnet.FieldDeviceID, tailnet.FieldDeviceFQDN, tailnet.FieldDeviceIPs, tailnet.FieldPodUID, tailnet.FieldReissue, tailnet.FieldChecks,
		keyAuthKey, keyStaticEndpoints,
	} {
		a, hadIt := before.Data[key]
		b, hasIt := after.Data[key]
		if hadIt != hasIt || !bytes.Equal(a, b) {
			return true
		}
	}
	return false
}

// nodeChanged reports whether a change of a Node can change static endpoints. Nodes
// report every few seconds.
func nodeChanged(e event.UpdateEvent) bool {
	before, ok := e.ObjectOld.(*corev1.Node)
	after, ok2 := e.ObjectNew.(*corev1.Node)
	return !ok || !ok2 || !maps.Equal(before.Labels, after.Labels) || unready(*before) != unready(*after) ||
		!equality.Semantic.DeepEqual(before.Status.Addresses, after.Status.Addresses)
}

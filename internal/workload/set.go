// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"fmt"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// FieldManager is the name by which the API server knows the fields that the operator
// sets.
const FieldManager = "tailhelm"

// ServiceMonitorKind is the kind of Prometheus' operator, which a cluster need not
// have.
var ServiceMonitorKind = schema.GroupVersionKind{Group: "monitoring.coreos.com", Version: "v1", Kind: "ServiceMonitor"}

// Kinds are those that templates may make: what a set is pruned of.
var Kinds = []schema.GroupVersionKind{
	corev1.SchemeGroupVersion.WithKind("ServiceAccount"),
	corev1.SchemeGroupVersion.WithKind("Service"),
	rbacv1.SchemeGroupVersion.WithKind("Role"),
	rbacv1.SchemeGroupVersion.WithKind("RoleBinding"),
	appsv1.SchemeGroupVersion.WithKind("StatefulSet"),
	policyv1.SchemeGroupVersion.WithKind("PodDisruptionBudget"),
	networkingv1.SchemeGroupVersion.WithKind("NetworkPolicy"),
	coordinationv1.SchemeGroupVersion.WithKind("Lease"),
	ServiceMonitorKind,
}

// Set is the objects of one owner in one namespace.
type Set struct {
	// Client writes.
	Client client.Client
	// Live reads from the API server itself: a cache may not hold what is not ours.
	Live client.Reader
	// Namespace holds the objects.
	Namespace string
	// Labels are on all objects of the set, and on no others.
	Labels map[string]string
	// Owner is the reference to the custom resource, as a controller.
	Owner metav1.OwnerReference
}

// NotOursError is an object that exists already and belongs to somebody else.
type NotOursError struct {
	// Object is its kind and name.
	Object string
	// Owner says whose it is, as far as one can tell.
	Owner string
	// Leaving is true when it is being deleted, so that waiting helps.
	Leaving bool
}

// Error says what is in the way.
func (e *NotOursError) Error() string {
	if e.Leaving {
		return fmt.Sprintf("%s of %s is still being deleted", e.Object, e.Owner)
	}
	return fmt.Sprintf("%s exists already and belongs to %s", e.Object, e.Owner)
}

// Claim checks that an object, which need not exist, may be written as one of the set:
// it does not exist, or it has the set's owner. It returns a [NotOursError] otherwise.
func (s Set) Claim(ctx context.Context, kind schema.GroupVersionKind, name string) error {
	existing := &metav1.PartialObjectMetadata{}
	existing.SetGroupVersionKind(kind)
	err := s.Live.Get(ctx, types.NamespacedName{Namespace: s.Namespace, Name: name}, existing)
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("looking whose %s %s is: %w", kind.Kind, name, err)
	}
	owner := metav1.GetControllerOf(existing)
	if owner != nil && owner.UID == s.Owner.UID {
		return nil
	}
	e := &NotOursError{Object: fmt.Sprintf("%s %s/%s", kind.Kind, s.Namespace, name), Owner: "somebody else", Leaving: existing.DeletionTimestamp != nil}
	switch release, manager := existing.Annotations["meta.helm.sh/release-name"], existing.Labels["app.kubernetes.io/managed-by"]; {
	case owner != nil && owner.Kind == s.Owner.Kind && owner.Name == s.Owner.Name:
		e.Owner, e.Leaving = fmt.Sprintf("an earlier %s %s", owner.Kind, owner.Name), true
	case owner != nil:
		e.Owner = owner.Kind + " " + owner.Name
	case release != "":
		e.Owner = "the Helm release " + release
	case manager != "":
		e.Owner = manager
	}
	return e
}

// Stamp makes an object one of the set.
func (s Set) Stamp(object metav1.Object) {
	labels := maps.Clone(object.GetLabels())
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, s.Labels)
	object.SetLabels(labels)
	object.SetNamespace(s.Namespace)
	object.SetOwnerReferences([]metav1.OwnerReference{s.Owner})
}

// Apply makes the cluster have the objects: all of them, or none when one is somebody
// else's. Objects of kinds that the cluster does not know are left out and returned, if
// it may lack the kind. It stops at the first error.
func (s Set) Apply(ctx context.Context, objects []*unstructured.Unstructured) (unknown []*unstructured.Unstructured, err error) {
	var known []*unstructured.Unstructured
	for _, object := range objects {
		kind := object.GroupVersionKind()
		err := s.Claim(ctx, kind, object.GetName())
		switch {
		case kind == ServiceMonitorKind && meta.IsNoMatchError(err):
			unknown = append(unknown, object)
		case err != nil:
			return unknown, err
		default:
			known = append(known, object)
		}
	}
	for _, object := range known {
		kind := object.GroupVersionKind()
		s.Stamp(object)
		if err := s.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), client.FieldOwner(FieldManager), client.ForceOwnership); err != nil {
			return unknown, fmt.Errorf("applying %s %s: %w", kind.Kind, object.GetName(), err)
		}
	}
	return unknown, nil
}

// Prune deletes the objects of the set that are not among keep. With keep nil, nothing
// of the set is left.
func (s Set) Prune(ctx context.Context, keep []*unstructured.Unstructured) error {
	kept := map[schema.GroupVersionKind]map[string]bool{}
	for _, object := range keep {
		kind := object.GroupVersionKind()
		if kept[kind] == nil {
			kept[kind] = map[string]bool{}
		}
		kept[kind][object.GetName()] = true
	}
	var errs []error
	for _, kind := range Kinds {
		errs = append(errs, s.prune(ctx, kind, kept[kind]))
	}
	return errors.Join(errs...)
}

// Delete deletes the set's objects of one kind.
func (s Set) Delete(ctx context.Context, kind schema.GroupVersionKind) error {
	return s.prune(ctx, kind, nil)
}

func (s Set) prune(ctx context.Context, kind schema.GroupVersionKind, keep map[string]bool) error {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
	err := s.Live.List(ctx, list, client.InNamespace(s.Namespace), client.MatchingLabels(s.Labels))
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) {
		return nil // the cluster does not know the kind
	} else if err != nil {
		return fmt.Errorf("looking for objects of kind %s to delete: %w", kind.Kind, err)
	}
	for i := range list.Items {
		object := &list.Items[i]
		owner := metav1.GetControllerOf(object)
		if keep[object.Name] || owner == nil || owner.UID != s.Owner.UID {
			continue
		}
		object.SetGroupVersionKind(kind)
		err := s.Client.Delete(ctx, object, client.Preconditions{UID: &object.UID}, client.PropagationPolicy(metav1.DeletePropagationBackground))
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("deleting %s %s: %w", kind.Kind, object.Name, err)
		}
	}
	return nil
}

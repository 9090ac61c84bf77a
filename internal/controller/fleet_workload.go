// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/internal/tailapi"
)

// prune deletes objects that are not rendered any more. It looks only when the
// rendered set has changed, and once after the operator's start.
func (f *fleet) prune(ctx context.Context, objects []*unstructured.Unstructured) error {
	names := make([]string, len(objects))
	for i, object := range objects {
		names[i] = object.GetKind() + "/" + object.GetName()
	}
	slices.Sort(names)
	rendered := strings.Join(names, " ")
	f.mu.Lock()
	done := f.pruned[f.parent.GetUID()] == rendered
	f.mu.Unlock()
	if done {
		return nil
	}
	if err := f.set.Prune(ctx, objects); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pruned[f.parent.GetUID()] = rendered
	return nil
}

// running returns how many replicas there are, by the number of the last one's pod.
func (f *fleet) running() int64 {
	n := 0
	for _, r := range f.replicas {
		if r.pod != nil {
			n = r.ordinal + 1
		}
	}
	return int64(n)
}

// statefulSet returns the parent's StatefulSet, or nil.
func (f *fleet) statefulSet(ctx context.Context) (*appsv1.StatefulSet, error) {
	set := &appsv1.StatefulSet{}
	err := f.live.Get(ctx, types.NamespacedName{Namespace: f.config.Namespace, Name: f.parent.GetName()}, set)
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // there is none
	} else if err != nil {
		return nil, fmt.Errorf("reading StatefulSet %s: %w", f.parent.GetName(), err)
	}
	return set, nil
}

// tidyReplicas deletes what a smaller number of replicas or a new device left behind.
func (f *fleet) tidyReplicas(ctx context.Context) []error {
	var errs []error
	for _, r := range f.surplus() {
		if r.pod == nil { // it ended, and so left the tailnet in order
			errs = append(errs, f.removeReplica(ctx, r))
		}
	}
	return append(errs, f.tidyDevices(ctx))
}

// removeReplica deletes the device of a replica that is too many, and its Secrets.
func (f *fleet) removeReplica(ctx context.Context, r replica) error {
	own := func(is tailapi.DeviceIdentity) bool { return slices.ContainsFunc(f.identities(r), is.Equal) }
	if id := r.deviceID(); id != "" {
		// One that is not this replica's may be another's. Else tidyDevices says what it is.
		var refused *tailapi.NotOwnError
		if err := f.deleteDevice(ctx, id, own); err != nil && !errors.As(err, &refused) {
			return err
		}
	}
	if r.config != nil && r.config.Annotations[annotationKeyID] != "" {
		f.revoke(ctx, r.config.Annotations[annotationKeyID])
	}
	for _, secret := range []*corev1.Secret{r.config, r.state} {
		if secret == nil {
			continue
		}
		if err := f.client.Delete(ctx, secret, client.Preconditions{UID: &secret.UID}); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("deleting Secret %s: %w", secret.Name, err)
		}
	}
	return nil
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/tailapi"
)

// groups reconciles ProxyGroups.
type groups struct {
	*operator
	// cluster identifies the cluster: the UID of its namespace kube-system.
	cluster string

	mu       sync.Mutex
	verified map[types.UID]verification

	ports portMemory
}

// verification is when a group's Service was last seen to be as it should be.
type verification struct {
	wanted string // what was compared
	at     time.Time
}

// Reconcile makes a group what its spec says, or takes it apart when it is deleted.
func (g *groups) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	group := &v1alpha1.ProxyGroup{}
	if err := g.live.Get(ctx, request.NamespacedName, group); client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("reading the ProxyGroup: %w", err)
	} else if err != nil || group.Spec.Type != v1alpha1.ProxyGroupTypeKubernetesAPIServer {
		return ctrl.Result{}, nil
	}
	if !g.mayReconcile(proxyGroupKind, group) {
		return ctrl.Result{}, nil
	}
	if !group.DeletionTimestamp.IsZero() {
		p := g.newPass(group)
		group.Status.URL = ""
		result, err := p.delete(ctx)
		if !controllerutil.ContainsFinalizer(group, finalizer) {
			g.mu.Lock()
			defer g.mu.Unlock()
			delete(g.verified, group.UID)
		}
		return result, err
	}
	notes := map[string]string{}
	if len(group.Spec.Tags) == 0 {
		notes[annotationTags] = strings.Join(g.config.Tags, ",")
	}
	if err := g.claim(ctx, proxyGroupKind, group, notes); err != nil {
		return ctrl.Result{}, err
	}
	p := g.newPass(group)
	return p.reconcile(ctx, p.run, p.setConditions)
}

// jitter spreads groups over time.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/10+1)) //nolint:gosec // nothing depends on it being secret
}

func isAPI(err error) bool {
	var e *tailapi.Error
	return errors.As(err, &e)
}

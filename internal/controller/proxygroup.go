// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/tailapi"
)

// groups reconciles ProxyGroups.
type groups struct {
	config Config
	client client.Client
	live   client.Reader // the API server itself, without a cache
	events events.EventRecorder
	gate   *gate
	// cluster identifies the cluster: the UID of its namespace kube-system.
	cluster string

	mu       sync.Mutex
	verified map[types.UID]verification
	pruned   map[types.UID]string

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
	if mine := g.config.Operator; mine != "" && group.Annotations[annotationOperator] != mine && group.Annotations[annotationOperator] != "" {
		return ctrl.Result{}, nil
	}
	if !group.DeletionTimestamp.IsZero() {
		return g.reconcileDeletion(ctx, group)
	}
	base := group.DeepCopy()
	claim := g.config.Operator != "" && group.Annotations[annotationOperator] == ""
	if claim {
		annotate(group, annotationOperator, g.config.Operator)
	}
	if controllerutil.AddFinalizer(group, finalizer) || claim {
		if err := g.client.Patch(ctx, group, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
			return ctrl.Result{}, fmt.Errorf("making the ProxyGroup this operator's: %w", err)
		}
	}
	p := g.newPass(group)
	err := p.noteAPI(p.run(ctx))
	p.setConditions(err)
	if e := p.writeStatus(ctx); e != nil {
		return ctrl.Result{}, errors.Join(err, e)
	}
	if err != nil {
		return ctrl.Result{}, err
	}
	p.lookAgain(jitter(g.config.timing.resync))
	return ctrl.Result{RequeueAfter: p.after}, nil
}

// jitter spreads groups over time.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/10+1)) //nolint:gosec // nothing depends on it being secret
}

// forget drops what is remembered of a group that is gone.
func (g *groups) forget(uid types.UID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.verified, uid)
	delete(g.pruned, uid)
}

// event tells people what happened to a group. action is what was being done, reason
// what came of it. The note is bounded here, whoever said what is in it.
func (g *groups) event(group *v1alpha1.ProxyGroup, kind, reason, action, format string, args ...any) {
	g.events.Eventf(group, nil, kind, reason, action, "%s", plain(fmt.Sprintf(format, args...), maxNote))
}

func isAPI(err error) bool {
	var e *tailapi.Error
	return errors.As(err, &e)
}

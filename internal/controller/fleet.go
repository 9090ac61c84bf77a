// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/workload"
)

// operator is what the controllers of all kinds work with.
type operator struct {
	config  Config
	client  client.Client
	live    client.Reader // the API server itself, without a cache
	events  events.EventRecorder
	breaker *breaker

	mu     sync.Mutex
	pruned map[types.UID]string
}

// parent is a custom resource that has replicas, each a device of the tailnet.
type parent interface {
	client.Object
	// Replicas returns how many there should be.
	Replicas() int32
	// HostnamePrefix returns what the names of the devices begin with.
	HostnamePrefix() string
	// ReplicaStatus returns their part of the status, to change.
	ReplicaStatus() *v1alpha1.ReplicaStatus
}

// kind is what the controllers must know of a kind of parent.
type kind struct {
	name     string // as in manifests
	label    string // the value of labelParentType
	ready    string // the type of the condition that all is ready
	deleting string // its reason while the parent is being deleted
}

// proxyGroupKind is the kind of ProxyGroups.
var proxyGroupKind = kind{name: kindProxyGroup, label: "proxygroup", ready: v1alpha1.ProxyGroupReady, deleting: reasonDeleting}

// fleet is one look at the replicas of one parent: devices, auth keys, Secrets, and the
// objects that the replicas are made of. It is the same for all kinds of parents.
type fleet struct {
	*operator
	kind kind
	// parent is as the API server has it, but for its status, which is changed in place;
	// seen is what the API server has.
	parent, seen parent
	// set are the parent's objects.
	set workload.Set
	// tags are those of the devices, sorted.
	tags []string
	// sharedName is the name of the Secret that replicas share, or "" when they share none;
	// shared is the Secret, if there is one.
	sharedName string
	shared     *corev1.Secret

	replicas []replica

	// What was found, for the conditions.
	invalid string // why the parent cannot be as its spec wants it
	apiErr  error  // the first error of the Tailscale API
	// noKey is when replicas that need an auth key may have it, by their numbers.
	noKey map[int]time.Time

	after time.Duration // when to look again; 0: no special wish

	// current reports whether a replica's pod is as the spec wants it now.
	current func(replica) bool
	// leave deletes what the parent has on the tailnet besides devices.
	leave func(context.Context) error
}

// newFleet returns a look at the replicas of object, whose devices have tags.
func (o *operator) newFleet(k kind, object parent, tags []string) *fleet {
	tags = sets.List(sets.New(tags...))
	return &fleet{
		operator: o, kind: k, parent: object, seen: copyOf(object), tags: tags, noKey: map[int]time.Time{},
		set: workload.Set{
			Client: o.client, Live: o.live, Namespace: o.config.Namespace,
			Labels: map[string]string{labelManaged: "true", labelParentType: k.label, labelParent: object.GetName()},
			Owner:  *metav1.NewControllerRef(object, v1alpha1.GroupVersion.WithKind(k.name)),
		},
		current: func(replica) bool { return true },
		leave:   func(context.Context) error { return nil },
	}
}

// copyOf returns a deep copy of a parent.
func copyOf(object parent) parent { return object.DeepCopyObject().(parent) } //nolint:forcetypeassert // it is of the same type

// status returns the parent's status, as far as it is that of all kinds, to change.
func (f *fleet) status() *v1alpha1.ReplicaStatus { return f.parent.ReplicaStatus() }

// lookAgain asks for a pass in d or sooner.
func (f *fleet) lookAgain(d time.Duration) {
	if f.after == 0 || d < f.after {
		f.after = d
	}
}

// noteAPI notes an error of the Tailscale API, and that it is to be tried again. It
// returns err when it is another error.
func (f *fleet) noteAPI(err error) error {
	if !isAPI(err) {
		return err
	}
	if f.apiErr == nil {
		f.apiErr = err
	}
	f.lookAgain(f.breaker.after(err))
	return nil
}

// tailnetObjects returns the notes of what the parent has in the tailnet, to change.
func (f *fleet) tailnetObjects() *v1alpha1.TailnetObjects {
	status := f.status()
	if status.Tailnet == nil {
		status.Tailnet = &v1alpha1.TailnetObjects{}
	}
	return status.Tailnet
}

// writeStatus writes the status if it has changed. A status that somebody else changed
// meanwhile is an error: notes must not be lost.
func (f *fleet) writeStatus(ctx context.Context) error {
	status := f.status()
	if t := status.Tailnet; t != nil && len(t.Services)+len(t.Devices) == 0 {
		status.Tailnet = nil
	}
	if equality.Semantic.DeepEqual(f.seen, f.parent) {
		return nil
	}
	written := copyOf(f.parent)
	if err := f.client.Status().Patch(ctx, written, client.MergeFromWithOptions(f.seen, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("writing the status: %w", err)
	}
	f.parent.SetResourceVersion(written.GetResourceVersion())
	f.seen = copyOf(f.parent)
	if status.Tailnet != nil && written.ReplicaStatus().Tailnet == nil {
		return fmt.Errorf("the API server drops fields of the status: its CustomResourceDefinition of %ss is older than this operator, upgrade it", f.kind.name)
	}
	return nil
}

// reconcile makes a pass, by run, and writes what it found, by setConditions, which gets the
// error of the API server that ended it, or nil. It says when to look again.
func (f *fleet) reconcile(ctx context.Context, run func(context.Context) error, setConditions func(failed error)) (ctrl.Result, error) {
	err := f.noteAPI(run(ctx))
	setConditions(err)
	if e := f.writeStatus(ctx); e != nil {
		return ctrl.Result{}, errors.Join(err, e)
	}
	if err != nil {
		return ctrl.Result{}, err
	}
	f.lookAgain(jitter(f.config.timing.resync))
	return ctrl.Result{RequeueAfter: f.after}, nil
}

// mayReconcile reports whether a parent is this operator's, or nobody's yet. What has a
// finalizer, and no annotation that says whose it is, is the official operator's: its
// devices, its Service and its state are none that this one can go on with.
func (o *operator) mayReconcile(k kind, object parent) bool {
	name := object.GetAnnotations()[annotationOperator]
	switch {
	case o.config.Operator == "" || name == o.config.Operator:
		return true
	case name != "":
		return false
	case controllerutil.ContainsFinalizer(object, finalizer) || controllerutil.ContainsFinalizer(object, officialFinalizer):
		o.events.Eventf(object, nil, corev1.EventTypeWarning, "ServedByAnotherOperator", "Reconcile",
			"this %s has been served by the official operator, and is left to it: delete it while that operator runs, and create it again; if that operator is gone, remove the finalizers first, and delete devices and Service in the admin console", k.name)
		return false
	}
	return true
}

// claim makes a parent this operator's, and keeps it until its objects in the tailnet are
// gone. notes are annotations that it gets where it has none of these names.
func (o *operator) claim(ctx context.Context, k kind, object parent, notes map[string]string) error {
	base := copyOf(object)
	changed := controllerutil.AddFinalizer(object, finalizer)
	note := func(name, value string) {
		if value != "" && object.GetAnnotations()[name] == "" {
			annotate(object, name, value)
			changed = true
		}
	}
	note(annotationOperator, o.config.Operator)
	for name, value := range notes {
		note(name, value)
	}
	if changed {
		if err := o.client.Patch(ctx, object, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
			return fmt.Errorf("making the %s this operator's: %w", k.name, err)
		}
	}
	return nil
}

// forget drops what is remembered of a parent that is gone.
func (o *operator) forget(uid types.UID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.pruned, uid)
}

// event tells people what happened to the parent. action is what was being done, reason
// what came of it. The note is bounded here, whoever said what is in it.
func (f *fleet) event(severity, reason, action, format string, args ...any) {
	f.events.Eventf(f.parent, nil, severity, reason, action, "%s", plain(fmt.Sprintf(format, args...), maxNote))
}

// isNotOurs reports whether err is an object that somebody else has.
func isNotOurs(err error) (*workload.NotOursError, bool) {
	var notOurs *workload.NotOursError
	return notOurs, errors.As(err, &notOurs)
}

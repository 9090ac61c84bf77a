// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/tailapi"
	"github.com/tailhelm/tailhelm/internal/workload"
)

// recorderKind is the kind of Recorders.
var recorderKind = kind{name: kindRecorder, label: "recorder", ready: v1alpha1.RecorderReady, deleting: "RecorderDeleting"}

// recorderTags are those of recorders that name none, as in the official operator.
var recorderTags = []string{"tag:k8s"}

// recorderSenders are the tags of devices that may send recordings to a recorder that names
// none: the operator's, and those of ProxyGroups.
var recorderSenders = []string{"tag:k8s-operator", "tag:k8s"}

// recorders reconciles Recorders.
type recorders struct {
	*operator
}

// Reconcile makes a recorder what its spec says, or takes it apart when it is deleted.
func (rs *recorders) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	recorder := &v1alpha1.Recorder{}
	if err := rs.live.Get(ctx, request.NamespacedName, recorder); client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("reading the Recorder: %w", err)
	} else if err != nil {
		return ctrl.Result{}, nil
	}
	if s := recorder.Spec.Storage; s != nil && s.S3 != nil {
		return ctrl.Result{}, nil // the official operator's: our definition lets none be made
	}
	if !rs.mayReconcile(recorderKind, recorder) {
		return ctrl.Result{}, nil
	}
	if !recorder.DeletionTimestamp.IsZero() {
		return rs.newPass(recorder).delete(ctx)
	}
	if err := rs.claim(ctx, recorderKind, recorder, nil); err != nil {
		return ctrl.Result{}, err
	}
	p := rs.newPass(recorder)
	return p.reconcile(ctx, p.run, p.setConditions)
}

// recorderPass is one look at one recorder.
type recorderPass struct {
	*fleet
	// recorder is the fleet's parent.
	recorder *v1alpha1.Recorder
}

// newPass returns a pass over recorder.
func (rs *recorders) newPass(recorder *v1alpha1.Recorder) *recorderPass {
	tags := recorderTags
	if len(recorder.Spec.Tags) > 0 {
		tags = tagNames(recorder.Spec.Tags)
	}
	return &recorderPass{fleet: rs.newFleet(recorderKind, recorder, tags), recorder: recorder}
}

// run makes the recorder what its spec says, as far as that is possible now. Errors of
// the Tailscale API and what people have to mend are noted; those of the API server are
// returned.
func (p *recorderPass) run(ctx context.Context) error {
	if err := p.observe(ctx); err != nil {
		return err
	}
	if err := p.noteDevices(ctx); err != nil {
		return err
	}
	if problems := recorderProblems(&p.recorder.Spec); len(problems) > 0 {
		p.invalid = strings.Join(problems, "; ")
		return nil // what runs goes on as it is
	}
	if err := p.ensureSecrets(ctx); err != nil || p.invalid != "" {
		return err
	}
	if err := p.ensureKeys(ctx); err != nil {
		return err
	}
	if err := p.ensureWorkload(ctx); err != nil || p.invalid != "" {
		return err
	}
	api, other := firstAPI(append(p.tidyReplicas(ctx), p.askAPI(ctx))...)
	return errors.Join(p.noteAPI(api), other)
}

// askAPI asks the Tailscale API for a device of the recorder when nobody has had an answer
// for a while: a recorder that is as it should be needs nothing of the API, and what keeps
// the operator from using it must be known before.
func (p *recorderPass) askAPI(ctx context.Context) error {
	i := slices.IndexFunc(p.wanted(), func(r replica) bool { return r.deviceID() != "" })
	if i < 0 || p.breaker.hasAnswered(p.config.timing.resync) {
		return nil
	}
	return p.breaker.do(func(api *tailapi.Client) error {
		_, err := api.OwnDevice(ctx, p.wanted()[i].deviceID(), p.own)
		var notOwn *tailapi.NotOwnError
		if errors.As(err, &notOwn) {
			return nil // an answer; whose the device is counts when it is to be deleted
		}
		return err
	})
}

// ensureWorkload renders the templates and makes the cluster like the result.
func (p *recorderPass) ensureWorkload(ctx context.Context) error {
	values, err := p.values()
	if err != nil {
		return err
	}
	objects, err := workload.Render(p.config.WorkloadsDir, workload.Release{Name: p.config.Release, Namespace: p.config.Namespace}, values)
	if err != nil {
		return err
	}
	if _, err := p.set.Apply(ctx, objects); err != nil {
		return p.noteNotOurs(err)
	}
	return p.prune(ctx, objects)
}

// values are what templates see as .Values, over the values of their chart.
func (p *recorderPass) values() (map[string]any, error) {
	spec, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&p.recorder.Spec)
	if err != nil {
		return nil, fmt.Errorf("the Recorder's spec as values: %w", err)
	}
	from := recorderSenders
	if r := p.recorder.Spec.Recordings; r != nil && len(r.From) > 0 {
		from = tagNames(r.From)
	}
	return map[string]any{
		"recorder": map[string]any{
			"name": p.recorder.Name, "uid": string(p.recorder.UID), "replicas": int64(p.recorder.Replicas()), "running": p.running(),
			"hostnamePrefix": p.recorder.HostnamePrefix(), "tags": anySlice(p.tags), "from": anySlice(from), "spec": spec,
		},
		"loginServer": p.config.LoginServer,
	}, nil
}

// anySlice returns strings as values of templates.
func anySlice(list []string) []any {
	values := make([]any, len(list))
	for i, s := range list {
		values[i] = s
	}
	return values
}

// setConditions sets the status by what the pass found. failed is the error of the API
// server that ended it, or nil.
func (p *recorderPass) setConditions(failed error) {
	p.setDevices()
	wanted, ready := len(p.wanted()), p.count(p.ready)
	p.setAPI(p.breaker.hasAnswered(p.config.timing.resync))
	var message string
	status, reason := metav1.ConditionFalse, v1alpha1.ReasonRecorderCreating
	switch {
	case p.invalid != "":
		reason, message = v1alpha1.ReasonRecorderInvalid, p.invalid
	case failed != nil:
		reason, message = v1alpha1.ReasonRecorderCreationFailed, failed.Error()
	case wanted == 0:
		reason, message = reasonScaledToZero, "spec.replicas is 0, so no recordings are taken"
	case ready == wanted:
		status, reason = metav1.ConditionTrue, v1alpha1.ReasonRecorderCreated
		message = fmt.Sprintf("%d/%d replicas are ready%s", ready, wanted, p.remarks())
	case p.apiErr != nil && p.count(func(r replica) bool { return r.pod != nil && r.deviceID() != "" }) < wanted:
		reason, message = v1alpha1.ReasonRecorderCreationFailed, p.apiErr.Error()
	default:
		message = fmt.Sprintf("%d/%d replicas are ready%s", ready, wanted, p.missing())
	}
	p.tellReady(status, reason, message, reason == v1alpha1.ReasonRecorderCreating || reason == reasonScaledToZero)
}

// remarks says what people may not expect of a recorder that is ready.
func (p *recorderPass) remarks() string {
	var remarks string
	if !p.recorder.Durable() {
		remarks += "; recordings are in the pods, and are lost with them: spec.storage.persistentVolumeClaim keeps them"
	}
	if fields := v1alpha1.RecorderWithoutEffect(&p.recorder.Spec); len(fields) > 0 {
		remarks += "; these fields have no effect: " + strings.Join(fields, ", ")
	}
	if p.recorder.Spec.EnableUI {
		remarks += "; read recordings with kubectl exec and tailhelm recorder list and play"
	}
	return remarks
}

// recorderProblems returns what is wrong with a Recorder that its schema lets pass: the API
// server would refuse its StatefulSet.
func recorderProblems(spec *v1alpha1.RecorderSpec) []string {
	set := spec.StatefulSet
	if set == nil {
		return nil
	}
	path := field.NewPath("spec", "statefulSet")
	errs := metadataProblems(set.Labels, set.Annotations, path)
	if pod := set.Pod; pod != nil {
		path := path.Child("pod")
		errs = append(errs, podProblems(pod.Labels, pod.Annotations, pod.NodeSelector, path)...)
		if c := pod.Container; c != nil {
			errs = append(errs, imageProblems(c.Image, path.Child("container", "image"))...)
		}
		if a := pod.ServiceAccount; a != nil {
			errs = append(errs, metadataProblems(nil, a.Annotations, path.Child("serviceAccount"))...)
		}
	}
	return sentences(errs)
}

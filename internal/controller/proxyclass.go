// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
)

// classes reconciles ProxyClasses: it tells whether groups can use them.
type classes struct {
	client client.Client
}

// Reconcile sets the condition of a ProxyClass.
func (c *classes) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	class := &v1alpha1.ProxyClass{}
	if err := c.client.Get(ctx, request.NamespacedName, class); client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("reading the ProxyClass: %w", err)
	} else if err != nil || !class.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil
	}
	condition := metav1.Condition{
		Type: v1alpha1.ProxyClassReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonProxyClassValid,
		Message: "ProxyGroups can use the class", ObservedGeneration: class.Generation,
	}
	if fields := v1alpha1.WithoutEffect(&class.Spec); len(fields) > 0 {
		condition.Message += "; these fields have no effect on their pods: " + strings.Join(fields, ", ")
	}
	if problems := classProblems(&class.Spec); len(problems) > 0 {
		condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, v1alpha1.ReasonProxyClassInvalid, strings.Join(problems, "; ")
	}
	condition.Message = plain(condition.Message, maxMessage)
	base := class.DeepCopy()
	if !meta.SetStatusCondition(&class.Status.Conditions, condition) {
		return ctrl.Result{}, nil
	}
	if err := c.client.Status().Patch(ctx, class, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
		return ctrl.Result{}, fmt.Errorf("writing the status: %w", err)
	}
	return ctrl.Result{}, nil
}

// classProblems returns what is wrong with a ProxyClass that its schema lets pass: the
// API server would refuse the StatefulSets of its groups.
func classProblems(spec *v1alpha1.ProxyClassSpec) []string {
	var errs field.ErrorList
	if set := spec.StatefulSet; set != nil {
		path := field.NewPath("spec", "statefulSet")
		errs = append(errs, metadataProblems(set.Labels, set.Annotations, path)...)
		if pod := set.Pod; pod != nil {
			path := path.Child("pod")
			errs = append(errs, podProblems(pod.Labels, pod.Annotations, pod.NodeSelector, path)...)
			if c := pod.TailscaleContainer; c != nil {
				errs = append(errs, imageProblems(c.Image, path.Child("tailscaleContainer", "image"))...)
			}
		}
	}
	if m := spec.Metrics; m != nil && m.ServiceMonitor != nil {
		errs = append(errs, metadataProblems(m.ServiceMonitor.Labels, nil, field.NewPath("spec", "metrics", "serviceMonitor"))...)
	}
	if e := spec.StaticEndpoints; e != nil && e.NodePort != nil {
		path := field.NewPath("spec", "staticEndpoints", "nodePort")
		errs = append(errs, metav1validation.ValidateLabels(e.NodePort.Selector, path.Child("selector"))...)
	}
	return sentences(errs)
}

// officialImages are names of images that hold no tailhelm.
var officialImages = []string{"tailscale", "k8s-proxy", "k8s-operator", "tsrecorder"}

func imageProblems(image string, path *field.Path) field.ErrorList {
	if strings.ContainsAny(image, " \t\n") {
		return field.ErrorList{field.Invalid(path, image, "is no name of an image")}
	}
	name, _, _ := strings.Cut(image, "@")
	name = name[strings.LastIndex(name, "/")+1:]
	name, _, _ = strings.Cut(name, ":")
	if slices.Contains(officialImages, name) {
		return field.ErrorList{field.Invalid(path, image, "is an image of the official operator, which cannot run these pods: remove it, or name a copy of tailhelm's")}
	}
	return nil
}

// podProblems returns what is wrong with what pods look like and where they may run.
func podProblems(labels v1alpha1.Labels, annotations, nodeSelector map[string]string, path *field.Path) field.ErrorList {
	return append(metadataProblems(labels, annotations, path), metav1validation.ValidateLabels(nodeSelector, path.Child("nodeSelector"))...)
}

// sentences returns errors for people, sorted.
func sentences(errs field.ErrorList) []string {
	var problems []string
	for _, err := range errs {
		problems = append(problems, err.Error())
	}
	slices.Sort(problems)
	return problems
}

func metadataProblems(labels v1alpha1.Labels, annotations map[string]string, path *field.Path) field.ErrorList {
	plain := map[string]string{}
	for name, value := range labels {
		plain[name] = string(value)
	}
	return append(metav1validation.ValidateLabels(plain, path.Child("labels")),
		apivalidation.ValidateAnnotations(annotations, path.Child("annotations"))...)
}

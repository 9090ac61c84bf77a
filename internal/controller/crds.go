// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/workload"
)

// crdInterval is how often missing definitions are looked for.
const crdInterval = 2 * time.Second

// InstallCRDs makes and upgrades the CustomResourceDefinitions of this program. One of
// a newer revision stays: another operator of this cluster may need it. So does one that a
// Helm release other than this one made, or that is in use.
func InstallCRDs(ctx context.Context, c client.Client, release types.NamespacedName, log *slog.Logger) error {
	definitions, err := v1alpha1.CustomResourceDefinitions()
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range definitions {
		errs = append(errs, installCRD(ctx, c, release, log, d))
	}
	return errors.Join(errs...)
}

func installCRD(ctx context.Context, c client.Client, release types.NamespacedName, log *slog.Logger, d *unstructured.Unstructured) error {
	existing := &metav1.PartialObjectMetadata{}
	existing.SetGroupVersionKind(apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition"))
	err := c.Get(ctx, types.NamespacedName{Name: d.GetName()}, existing)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("reading CustomResourceDefinition %s: %w", d.GetName(), err)
	}
	ours, theirs := revision(d), revision(existing)
	if err == nil && theirs > ours {
		log.WarnContext(ctx, "the cluster has a newer CustomResourceDefinition, which stays", "name", d.GetName(), "revision", theirs, "ours", ours)
		return nil
	}
	if err == nil && theirs == ours {
		return nil
	}
	if err == nil && theirs == 0 {
		if owner := helmRelease(existing); owner.Name != "" && owner != release {
			log.WarnContext(ctx, "the CustomResourceDefinition of another Helm release stays: remove its annotations meta.helm.sh/release-name and release-namespace if that release is gone", "name", d.GetName(), "release", owner)
			return nil
		}
		if other, err := usedByOthers(ctx, c); err != nil {
			return err
		} else if other != "" {
			log.WarnContext(ctx, "the CustomResourceDefinition of another operator stays, because that operator is in use", "name", d.GetName(), "by", other)
			return nil
		}
	}
	if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(d), client.FieldOwner(workload.FieldManager), client.ForceOwnership); err != nil {
		return fmt.Errorf("applying CustomResourceDefinition %s: %w", d.GetName(), err)
	}
	log.InfoContext(ctx, "applied a CustomResourceDefinition", "name", d.GetName(), "revision", ours, "before", theirs)
	return nil
}

// helmRelease returns the release whose template made a definition. Ours is in no template.
func helmRelease(d metav1.Object) types.NamespacedName {
	a := d.GetAnnotations()
	return types.NamespacedName{Namespace: a["meta.helm.sh/release-namespace"], Name: a["meta.helm.sh/release-name"]}
}

// usedByOthers returns a ProxyGroup or Recorder that is for another operator, or "".
func usedByOthers(ctx context.Context, c client.Client) (string, error) {
	groups, err := listAny(ctx, c, kindProxyGroup)
	if err != nil {
		return "", err
	}
	for _, group := range groups {
		kind, _, err := unstructured.NestedString(group.Object, "spec", "type")
		if err == nil && kind != string(v1alpha1.ProxyGroupTypeKubernetesAPIServer) {
			return fmt.Sprintf("ProxyGroup %s of type %s", group.GetName(), kind), nil
		}
	}
	recorders, err := listAny(ctx, c, kindRecorder)
	if err != nil {
		return "", err
	}
	for _, recorder := range recorders {
		if _, ok, err := unstructured.NestedMap(recorder.Object, "spec", "storage", "s3"); ok && err == nil {
			return fmt.Sprintf("Recorder %s with a bucket", recorder.GetName()), nil
		}
	}
	return "", nil
}

// listAny lists what there is of a kind, whatever its definition is; nothing when there is
// no definition.
func listAny(ctx context.Context, c client.Client, kind string) ([]unstructured.Unstructured, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(kind + "List"))
	if err := c.List(ctx, list); err != nil && !meta.IsNoMatchError(err) && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("looking for a %s of another operator: %w", kind, err)
	}
	return list.Items, nil
}

// revision returns which of our revisions a definition is; 0 for one of somebody else.
func revision(d metav1.Object) int {
	n, err := strconv.Atoi(d.GetAnnotations()[v1alpha1.RevisionAnnotation])
	if err != nil {
		return 0
	}
	return n
}

// waitForKinds waits until the API server serves these kinds of ours, which people may
// install later, or ctx is done. It tells note why it waits, whenever that changes.
func waitForKinds(ctx context.Context, d *discovery.DiscoveryClient, note func(context.Context, error), kinds ...string) error {
	said := ""
	return wait.PollUntilContextCancel(ctx, crdInterval, true, func(ctx context.Context) (bool, error) {
		missing, err := missingKinds(ctx, d, kinds...)
		switch {
		case len(missing) == 0 && err == nil:
			return true, nil
		case err == nil:
			err = fmt.Errorf("the CustomResourceDefinitions of %s are missing: install those of the chart with helm or kubectl apply", strings.Join(missing, ", "))
		}
		if err.Error() != said {
			said = err.Error()
			note(ctx, err)
		}
		return false, nil
	})
}

// missingKinds returns which of these kinds of ours the API server does not serve.
func missingKinds(ctx context.Context, d *discovery.DiscoveryClient, kinds ...string) ([]string, error) {
	missing := map[string]bool{}
	for _, name := range kinds {
		missing[name] = true
	}
	list, err := d.ServerResourcesForGroupVersionWithContext(ctx, v1alpha1.GroupVersion.String())
	if err == nil {
		for _, r := range list.APIResources {
			delete(missing, r.Kind)
		}
	}
	return slices.Sorted(maps.Keys(missing)), client.IgnoreNotFound(err)
}

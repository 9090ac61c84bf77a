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
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/internal/tailapi"
	"github.com/tailhelm/tailhelm/internal/workload"
)

// ensureWorkload renders the templates and makes the cluster like the result.
func (p *pass) ensureWorkload(ctx context.Context) error {
	ports, err := p.nodePorts(ctx)
	if err != nil {
		return err
	}
	values, err := p.values(ports)
	if err != nil {
		return err
	}
	objects, err := workload.Render(p.config.WorkloadsDir, workload.Release{Name: p.config.Release, Namespace: p.config.Namespace}, values)
	if err != nil {
		return err
	}
	if p.foreign {
		// A name that is another's must not be advertised.
		for _, object := range objects {
			if object.GetKind() == "StatefulSet" {
				if err := unstructured.SetNestedField(object.Object, int64(0), "spec", "replicas"); err != nil {
					return fmt.Errorf("stopping the replicas: %w", err)
				}
			}
		}
	}
	unknown, err := p.set.Apply(ctx, objects)
	if p.ports.learn(err, time.Now()) {
		p.noEndpoint = fmt.Sprintf("static endpoints need other ports, which are looked for: %v", err)
		p.lookAgain(nextTrials)
		return nil
	} else if err != nil {
		return p.noteNotOurs(err)
	}
	if len(unknown) > 0 {
		p.event(p.group, corev1.EventTypeWarning, "ServiceMonitorUnknown", "ApplyWorkload", "the ProxyClass wants a ServiceMonitor, but the cluster does not know this kind: install Prometheus' operator")
	}
	if err := p.prune(ctx, objects); err != nil {
		return err
	}
	return p.publishEndpoints(ctx, ports)
}

// prune deletes objects that are not rendered any more. It looks only when the
// rendered set has changed, and once after the operator's start.
func (p *pass) prune(ctx context.Context, objects []*unstructured.Unstructured) error {
	names := make([]string, len(objects))
	for i, object := range objects {
		names[i] = object.GetKind() + "/" + object.GetName()
	}
	slices.Sort(names)
	rendered := strings.Join(names, " ")
	p.mu.Lock()
	done := p.pruned[p.group.UID] == rendered
	p.mu.Unlock()
	if done {
		return nil
	}
	if err := p.set.Prune(ctx, objects); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pruned[p.group.UID] = rendered
	return nil
}

// values are what templates see as .Values, over the values of their chart.
func (p *pass) values(ports map[int]int32) (map[string]any, error) {
	class := map[string]any{}
	if p.class != nil {
		var err error
		if class, err = runtime.DefaultUnstructuredConverter.ToUnstructured(p.class); err != nil {
			return nil, fmt.Errorf("the ProxyClass as values: %w", err)
		}
	}
	tags := []any{}
	for _, tag := range p.tags() {
		tags = append(tags, tag)
	}
	nodePorts, wireguardPort := map[string]any{}, int64(0)
	for ordinal, port := range ports {
		nodePorts[fmt.Sprint(ordinal)] = int64(port)
		wireguardPort = staticPort
	}
	return map[string]any{
		"proxyGroup": map[string]any{
			"name": p.group.Name, "uid": string(p.group.UID), "mode": string(p.group.Mode()), "replicas": int64(p.group.Replicas()),
			"running":        p.running(),
			"hostnamePrefix": p.group.HostnamePrefix(), "tags": tags, "service": p.serviceName(),
		},
		"proxyClass":    class,
		"loginServer":   p.config.LoginServer,
		"impersonator":  p.config.Impersonator,
		"nodePorts":     nodePorts,
		"wireguardPort": wireguardPort,
	}, nil
}

// running returns how many replicas there are, by the number of the last one's pod.
func (p *pass) running() int64 {
	n := 0
	for _, r := range p.replicas {
		if r.pod != nil {
			n = r.ordinal + 1
		}
	}
	return int64(n)
}

// statefulSet returns the group's StatefulSet, or nil.
func (p *pass) statefulSet(ctx context.Context) (*appsv1.StatefulSet, error) {
	set := &appsv1.StatefulSet{}
	err := p.live.Get(ctx, types.NamespacedName{Namespace: p.config.Namespace, Name: p.group.Name}, set)
	if apierrors.IsNotFound(err) {
		return nil, nil //nolint:nilnil // there is none
	} else if err != nil {
		return nil, fmt.Errorf("reading StatefulSet %s: %w", p.group.Name, err)
	}
	return set, nil
}

// tidy deletes what a rename, a smaller group or a new device left behind.
func (p *pass) tidy(ctx context.Context) error {
	var errs []error
	for _, r := range p.surplus() {
		if r.pod == nil { // it ended, and so withdrew the Service
			errs = append(errs, p.removeReplica(ctx, r))
		}
	}
	errs = append(errs, p.tidyDevices(ctx), p.tidyServices(ctx))
	api, other := firstAPI(errs...)
	return errors.Join(p.noteAPI(api), other)
}

// removeReplica deletes the device of a replica that is too many, and its Secrets.
func (p *pass) removeReplica(ctx context.Context, r replica) error {
	own := func(is tailapi.DeviceIdentity) bool { return slices.ContainsFunc(p.identities(r), is.Equal) }
	if id := r.deviceID(); id != "" {
		// One that is not this replica's may be another's. Else tidyDevices says what it is.
		var refused *tailapi.NotOwnError
		if err := p.deleteDevice(ctx, id, own); err != nil && !errors.As(err, &refused) {
			return err
		}
	}
	if r.config != nil && r.config.Annotations[annotationKeyID] != "" {
		p.revoke(ctx, r.config.Annotations[annotationKeyID])
	}
	for _, secret := range []*corev1.Secret{r.config, r.state} {
		if secret == nil {
			continue
		}
		if err := p.client.Delete(ctx, secret, client.Preconditions{UID: &secret.UID}); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("deleting Secret %s: %w", secret.Name, err)
		}
	}
	return nil
}

// tidyServices deletes Services of names that the group had before, once all replicas
// serve under the new one.
func (p *pass) tidyServices(ctx context.Context) error {
	var old []string
	for _, name := range p.tailnetObjects().Services {
		if name != p.serviceName() {
			old = append(old, name)
		}
	}
	if len(old) == 0 {
		return nil
	}
	set, err := p.statefulSet(ctx)
	if err != nil {
		return err
	}
	if set != nil && (set.Status.ObservedGeneration < set.Generation || set.Status.UpdatedReplicas < p.group.Replicas() || set.Status.Replicas > set.Status.UpdatedReplicas) {
		return nil // its events bring us back
	}
	for _, name := range old {
		if err := p.deleteService(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

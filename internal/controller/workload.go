// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

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
	if p.groups.ports.learn(err, time.Now()) {
		p.noEndpoint = fmt.Sprintf("static endpoints need other ports, which are looked for: %v", err)
		p.lookAgain(nextTrials)
		return nil
	} else if err != nil {
		return p.noteNotOurs(err)
	}
	if len(unknown) > 0 {
		p.event(corev1.EventTypeWarning, "ServiceMonitorUnknown", "ApplyWorkload", "the ProxyClass wants a ServiceMonitor, but the cluster does not know this kind: install Prometheus' operator")
	}
	if err := p.prune(ctx, objects); err != nil || p.foreign {
		return err // no replica is to be reached
	}
	return p.publishEndpoints(ctx, ports)
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
	nodePorts, wireguardPort := map[string]any{}, int64(0)
	for ordinal, port := range ports {
		nodePorts[fmt.Sprint(ordinal)] = int64(port)
		wireguardPort = staticPort
	}
	return map[string]any{
		"proxyGroup": map[string]any{
			"name": p.group.Name, "uid": string(p.group.UID), "mode": string(p.group.Mode()), "replicas": int64(p.group.Replicas()),
			"running":        p.running(),
			"hostnamePrefix": p.group.HostnamePrefix(), "tags": anySlice(p.tags), "service": p.serviceName(),
		},
		"proxyClass":    class,
		"loginServer":   p.config.LoginServer,
		"impersonator":  p.config.Impersonator,
		"nodePorts":     nodePorts,
		"wireguardPort": wireguardPort,
	}, nil
}

// tidy deletes what a rename, a smaller group or a new device left behind.
func (p *pass) tidy(ctx context.Context) error {
	api, other := firstAPI(append(p.tidyReplicas(ctx), p.tidyServices(ctx))...)
	return errors.Join(p.noteAPI(api), other)
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

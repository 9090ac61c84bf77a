// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
)

const (
	// staticPort is the UDP port of WireGuard in the pods of groups with static
	// endpoints: each pod has an address of its own.
	staticPort = 41641
	// endpointsPerReplica is how many nodes lead to a replica: a second one, because a
	// node can go.
	endpointsPerReplica = 2
)

// nodePorts returns the node port of each replica, nil when the ProxyClass wants none.
func (p *pass) nodePorts(ctx context.Context) (map[int]int32, error) {
	if p.class == nil || p.class.StaticEndpoints == nil || p.class.StaticEndpoints.NodePort == nil {
		return nil, nil
	}
	ports := map[int]int32{}
	taken := map[int32]bool{}
	for _, r := range p.wanted() {
		port, err := p.currentPort(ctx, r.ordinal)
		if err != nil {
			return nil, err
		}
		if inRanges(p.class.StaticEndpoints.NodePort.Ports, port) && !taken[port] {
			ports[r.ordinal], taken[port] = port, true
		}
	}
	for _, r := range p.wanted() {
		if ports[r.ordinal] != 0 {
			continue
		}
		port, err := p.freePort(ctx, r.ordinal, taken)
		if errors.Is(err, errNoPort) || errors.Is(err, errManyPorts) {
			p.noEndpoint = fmt.Sprintf("replica %d has no static endpoint: %v", r.ordinal, err)
			continue
		} else if err != nil {
			return nil, err
		}
		ports[r.ordinal], taken[port] = port, true
	}
	return ports, nil
}

func nodePortName(group string, ordinal int) string {
	return fmt.Sprintf("%s-%d-nodeport", group, ordinal)
}

// currentPort returns the node port that a replica has, or 0.
func (p *pass) currentPort(ctx context.Context, ordinal int) (int32, error) {
	service := &corev1.Service{}
	err := p.live.Get(ctx, types.NamespacedName{Namespace: p.config.Namespace, Name: nodePortName(p.group.Name, ordinal)}, service)
	if apierrors.IsNotFound(err) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("reading the Service of replica %d: %w", ordinal, err)
	}
	if !metav1.IsControlledBy(service, p.group) || len(service.Spec.Ports) == 0 {
		return 0, nil
	}
	return service.Spec.Ports[0].NodePort, nil
}

// inRanges reports whether a port is one of those that a ProxyClass names.
func inRanges(ranges []v1alpha1.PortRange, port int32) bool {
	return slices.ContainsFunc(ranges, func(r v1alpha1.PortRange) bool {
		return port >= int32(r.Port) && port <= int32(max(r.Port, r.EndPort))
	})
}

// publishEndpoints tells each replica at which addresses outside the tailnet it can be
// reached: in its config Secret, because arguments cannot differ between the pods of a
// StatefulSet.
func (p *pass) publishEndpoints(ctx context.Context, ports map[int]int32) error {
	var addresses []string
	if len(ports) > 0 {
		var err error
		if addresses, err = p.nodeAddresses(ctx); err != nil {
			return err
		}
		if len(addresses) == 0 {
			p.noEndpoint = "the replicas have no static endpoints: no Node that matches the ProxyClass' staticEndpoints.nodePort.selector has an address of type ExternalIP"
		}
	}
	for _, r := range p.wanted() {
		endpoints := ""
		if port := ports[r.ordinal]; port != 0 {
			endpoints = joinEndpoints(string(r.config.Data[keyStaticEndpoints]), addresses, port)
		}
		if endpoints == string(r.config.Data[keyStaticEndpoints]) {
			continue
		}
		err := p.patchSecret(ctx, r.config, func(s *corev1.Secret) {
			if s.Data == nil {
				s.Data = map[string][]byte{}
			}
			if s.Data[keyStaticEndpoints] = []byte(endpoints); endpoints == "" {
				delete(s.Data, keyStaticEndpoints)
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// joinEndpoints returns the endpoints of a replica. Those that it has and that still
// hold stay, in their order: a new list is news to the whole tailnet.
func joinEndpoints(current string, addresses []string, port int32) string {
	var all, kept []string
	for _, address := range addresses {
		ip, err := netip.ParseAddr(address)
		if err != nil {
			continue
		}
		all = append(all, netip.AddrPortFrom(ip, uint16(port)).String()) //nolint:gosec // a node port fits
	}
	for _, endpoint := range strings.Split(current, ",") {
		if slices.Contains(all, endpoint) {
			kept = append(kept, endpoint)
		}
	}
	for _, endpoint := range all {
		if len(kept) < endpointsPerReplica && !slices.Contains(kept, endpoint) {
			kept = append(kept, endpoint)
		}
	}
	return strings.Join(kept[:min(len(kept), endpointsPerReplica)], ",")
}

// nodeAddresses returns an external address of each node that the ProxyClass selects,
// ready nodes first, by name.
func (p *pass) nodeAddresses(ctx context.Context) ([]string, error) {
	var nodes corev1.NodeList
	if err := p.live.List(ctx, &nodes, client.MatchingLabels(maps.Clone(p.class.StaticEndpoints.NodePort.Selector))); err != nil {
		return nil, fmt.Errorf("listing Nodes for static endpoints: %w", err)
	}
	slices.SortFunc(nodes.Items, func(a, b corev1.Node) int {
		return cmp.Or(cmp.Compare(unready(a), unready(b)), cmp.Compare(a.Name, b.Name))
	})
	var addresses []string
	for _, node := range nodes.Items {
		for _, a := range node.Status.Addresses {
			if a.Type == corev1.NodeExternalIP {
				addresses = append(addresses, a.Address)
				break
			}
		}
	}
	return addresses, nil
}

// unready is 0 for a node that is ready, else 1.
func unready(n corev1.Node) int {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return 0
		}
	}
	return 1
}

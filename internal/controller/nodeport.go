// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"regexp"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
)

const (
	// maxTrials is how many node ports a pass tries out. A ProxyClass may name all there are.
	maxTrials = 20
	// nextTrials is when the next pass goes on with it.
	nextTrials = time.Second
)

// Reasons why a replica has no node port.
var (
	errNoPort    = errors.New("no free port")
	errManyPorts = errors.New("still looking for a free port")
)

// validPorts is in the API server's answer to a port that is none of the cluster's node
// ports.
var validPorts = regexp.MustCompile(`The range of valid ports is (\d+)-(\d+)`)

// portMemory is what is known of the cluster's node ports, which nobody lists.
type portMemory struct {
	mu          sync.Mutex
	refused     map[int32]time.Time // when
	first, last int32               // the cluster's range
	learned     time.Time           // when first and last were, or the zero time
}

// worthTrying reports whether a port may be free: it is in the cluster's range, and was not
// refused for a while.
func (m *portMemory) worthTrying(port int32, after time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	outside := m.learned.After(after) && (port < m.first || port > m.last)
	return !outside && !m.refused[port].After(after)
}

// refuse notes that the API server refused a port.
func (m *portMemory) refuse(port int32, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refused == nil {
		m.refused = map[int32]time.Time{}
	}
	m.refused[port] = now
}

// learn notes the cluster's range, if err tells it, and reports whether it did. The API
// server tells it of Services that are really made, not of trials.
func (m *portMemory) learn(err error, now time.Time) bool {
	if !apierrors.IsInvalid(err) {
		return false
	}
	found := validPorts.FindStringSubmatch(err.Error())
	if found == nil {
		return false
	}
	first, err := strconv.ParseInt(found[1], 10, 32)
	last, err2 := strconv.ParseInt(found[2], 10, 32)
	if err != nil || err2 != nil || first > last {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.first, m.last, m.learned = int32(first), int32(last), now
	return true
}

// portsOf yields the ports that a ProxyClass names, in order.
func portsOf(ranges []v1alpha1.PortRange) iter.Seq[int32] {
	return func(yield func(int32) bool) {
		for _, r := range ranges {
			for port := int32(r.Port); port <= int32(max(r.Port, r.EndPort)); port++ {
				if !yield(port) {
					return
				}
			}
		}
	}
}

// freePort asks the API server for a port of the ProxyClass that no Service has: it tries
// them out without making anything. A pass tries a bounded number of ports, and the next
// one goes on with others.
func (p *pass) freePort(ctx context.Context, ordinal int, taken map[int32]bool) (int32, error) {
	const named = "among those of the ProxyClass' staticEndpoints.nodePort.ports"
	now := time.Now()
	var last error
	for port := range portsOf(p.class.StaticEndpoints.NodePort.Ports) {
		if taken[port] || !p.groups.ports.worthTrying(port, now.Add(-p.config.timing.resync)) {
			continue
		}
		if p.trials++; p.trials > maxTrials {
			p.lookAgain(nextTrials)
			return 0, fmt.Errorf("%w %s: port %d is the next; name ports that no Service has to make it faster", errManyPorts, named, port)
		}
		err := p.tryPort(ctx, ordinal, port)
		if err == nil {
			return port, nil
		} else if !apierrors.IsInvalid(err) {
			return 0, fmt.Errorf("looking for a free node port: %w", err)
		}
		p.groups.ports.refuse(port, now)
		last = err
	}
	if last == nil {
		return 0, fmt.Errorf("%w %s: name at least as many as there are replicas, of the cluster's range, that no Service has", errNoPort, named)
	}
	return 0, fmt.Errorf("%w %s: %w", errNoPort, named, last)
}

// tryPort asks the API server whether a Service could have a node port.
func (p *pass) tryPort(ctx context.Context, ordinal int, port int32) error {
	trial := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{GenerateName: nodePortName(p.group.Name, ordinal) + "-", Namespace: p.config.Namespace},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{
			{Port: staticPort, TargetPort: intstr.FromInt32(staticPort), Protocol: corev1.ProtocolUDP, NodePort: port},
		}},
	}
	return p.client.Create(ctx, trial, client.DryRunAll)
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// replica is what there is of one replica.
type replica struct {
	ordinal       int
	state, config *corev1.Secret // nil: there is none
	pod           *corev1.Pod    // nil: there is none
}

// field returns what the replica, or an earlier one of the same number, wrote about
// itself.
func (r replica) field(key string) string {
	if r.state == nil {
		return ""
	}
	return string(r.state.Data[key])
}

// live reports whether the pod that runs now wrote what the state Secret says. What an
// earlier pod wrote says nothing about now.
func (r replica) live() bool {
	return r.pod != nil && r.pod.DeletionTimestamp == nil && r.pod.UID != "" && strings.EqualFold(r.field(tailnet.KeyPodUID), string(r.pod.UID))
}

// running reports whether the replica is a device of the tailnet now.
func (r replica) running() bool {
	return r.live() && r.deviceID() != "" && r.checks()[checkTailnet] == ""
}

// ready reports whether the replica can be reached now, as one of the group that its
// spec describes.
func (p *pass) ready(r replica) bool {
	return r.running() && p.current(r) && slices.ContainsFunc(r.pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// current reports whether the pod serves the Service and has the mode that the spec
// wants: after a change, pods go on under the old ones until they are replaced.
func (p *pass) current(r replica) bool {
	for name, want := range map[string]string{"--service=": p.serviceName(), "--mode=": string(p.group.Mode())} {
		for _, c := range r.pod.Spec.Containers {
			for _, arg := range c.Args {
				if value, ok := strings.CutPrefix(arg, name); ok && value != want {
					return false
				}
			}
		}
	}
	return true
}

// Names of a replica's checks that become conditions.
const (
	checkTailnet     = "tailnet"
	checkCertificate = "certificate"
	checkService     = "service"
)

// checks returns the readiness checks that fail, with the reasons; nil when the replica
// has not told yet. It is what the replica says, made fit to be shown.
func (r replica) checks() map[string]string {
	report := r.field(tailnet.KeyChecks)
	if len(report) > maxReport {
		return map[string]string{"report": fmt.Sprintf("is longer than %d bytes", maxReport)}
	}
	var told map[string]string
	if err := json.Unmarshal([]byte(report), &told); err != nil || told == nil {
		return nil
	}
	checks := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(told)) {
		if len(checks) < maxChecks && checkName.MatchString(name) {
			checks[name] = plain(told[name], maxReason)
		}
	}
	if len(told) > 0 && len(checks) == 0 {
		checks["report"] = "names no check"
	}
	return checks
}

// hostname returns the first label of the device's name, and the domain that follows; ""
// when what the replica says is no name.
func (r replica) hostname() (label, domain string) {
	name := r.field(tailnet.KeyDeviceFQDN)
	label, domain, _ = strings.Cut(name, ".")
	if len(validation.IsDNS1123Subdomain(name)) > 0 || len(validation.IsDNS1123Label(label)) > 0 {
		return "", ""
	}
	return label, domain
}

// ips returns the device's addresses.
func (r replica) ips() []string {
	var told []string
	if err := json.Unmarshal([]byte(r.field(tailnet.KeyDeviceIPs)), &told); err != nil {
		return nil
	}
	var ips []string
	for _, ip := range told[:min(len(told), maxListed)] {
		if addr, err := netip.ParseAddr(ip); err == nil && addr.Zone() == "" {
			ips = append(ips, addr.String())
		}
	}
	return ips
}

// observe reads the group's replicas: those that are wanted, whether there is anything
// of them or not, and those that are too many.
func (p *pass) observe(ctx context.Context) error {
	var secrets corev1.SecretList
	if err := p.live.List(ctx, &secrets, client.InNamespace(p.config.Namespace), client.MatchingLabels(p.set.Labels)); err != nil {
		return fmt.Errorf("listing the group's Secrets: %w", err)
	}
	var pods corev1.PodList
	if err := p.live.List(ctx, &pods, client.InNamespace(p.config.Namespace), client.MatchingLabels(p.set.Labels)); err != nil {
		return fmt.Errorf("listing the group's Pods: %w", err)
	}
	all := map[int]*replica{}
	at := func(ordinal int) *replica {
		if all[ordinal] == nil {
			all[ordinal] = &replica{ordinal: ordinal}
		}
		return all[ordinal]
	}
	for i := range int(p.group.Replicas()) {
		at(i)
	}
	p.tls = nil
	for i := range secrets.Items {
		s := &secrets.Items[i]
		if owner := metav1.GetControllerOf(s); owner == nil || owner.UID != p.group.UID {
			continue // an earlier group's: making ours will say so
		}
		if s.Name == tlsSecretName(p.group.Name) {
			p.tls = s
		} else if ordinal, ok := ordinalOf(p.group.Name, strings.TrimSuffix(s.Name, "-config")); !ok {
			continue
		} else if strings.HasSuffix(s.Name, "-config") {
			at(ordinal).config = s
		} else {
			at(ordinal).state = s
		}
	}
	for i := range pods.Items {
		if ordinal, ok := ordinalOf(p.group.Name, pods.Items[i].Name); ok {
			at(ordinal).pod = &pods.Items[i]
		}
	}
	p.replicas = p.replicas[:0]
	for _, ordinal := range slices.Sorted(maps.Keys(all)) {
		p.replicas = append(p.replicas, *all[ordinal])
	}
	return nil
}

// ordinalOf returns the number in the name of a replica.
func ordinalOf(group, name string) (int, bool) {
	number, ok := strings.CutPrefix(name, group+"-")
	ordinal, err := strconv.Atoi(number)
	return ordinal, ok && err == nil && ordinal >= 0 && strconv.Itoa(ordinal) == number
}

// wanted returns the replicas that the group should have.
func (p *pass) wanted() []replica { return p.replicas[:p.group.Replicas()] }

// surplus returns the replicas that are too many.
func (p *pass) surplus() []replica { return p.replicas[p.group.Replicas():] }

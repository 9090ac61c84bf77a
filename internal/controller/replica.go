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

	"github.com/tailhelm/tailhelm/internal/health"
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
	return r.pod != nil && r.pod.DeletionTimestamp == nil && r.pod.UID != "" && strings.EqualFold(r.field(tailnet.FieldPodUID), string(r.pod.UID))
}

// running reports whether the replica is a device of the tailnet now.
func (r replica) running() bool {
	return r.live() && r.deviceID() != "" && r.checks()[health.CheckTailnet] == ""
}

// ready reports whether the replica can be reached now, as one of those that the
// spec describes.
func (f *fleet) ready(r replica) bool {
	return r.running() && f.current(r) && slices.ContainsFunc(r.pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// checks returns the readiness checks that fail, with the reasons; nil when the replica
// has not told yet. It is what the replica says, made fit to be shown.
func (r replica) checks() map[string]string {
	report := r.field(tailnet.FieldChecks)
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
	name := r.field(tailnet.FieldDeviceFQDN)
	label, domain, _ = strings.Cut(name, ".")
	if len(validation.IsDNS1123Subdomain(name)) > 0 || len(validation.IsDNS1123Label(label)) > 0 {
		return "", ""
	}
	return label, domain
}

// ips returns the device's addresses.
func (r replica) ips() []string {
	var told []string
	if err := json.Unmarshal([]byte(r.field(tailnet.FieldDeviceIPs)), &told); err != nil {
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

// observe reads the parent's replicas: those that are wanted, whether there is anything
// of them or not, and those that are too many.
func (f *fleet) observe(ctx context.Context) error {
	var secrets corev1.SecretList
	if err := f.live.List(ctx, &secrets, client.InNamespace(f.config.Namespace), client.MatchingLabels(f.set.Labels)); err != nil {
		return fmt.Errorf("listing the replicas' Secrets: %w", err)
	}
	var pods corev1.PodList
	if err := f.live.List(ctx, &pods, client.InNamespace(f.config.Namespace), client.MatchingLabels(f.set.Labels)); err != nil {
		return fmt.Errorf("listing the replicas' Pods: %w", err)
	}
	all := map[int]*replica{}
	at := func(ordinal int) *replica {
		if all[ordinal] == nil {
			all[ordinal] = &replica{ordinal: ordinal}
		}
		return all[ordinal]
	}
	for i := range int(f.parent.Replicas()) {
		at(i)
	}
	f.shared = nil
	for i := range secrets.Items {
		s := &secrets.Items[i]
		if !metav1.IsControlledBy(s, f.parent) {
			continue // an earlier parent's: making ours will say so
		}
		if s.Name == f.sharedName {
			f.shared = s
		} else if ordinal, ok := ordinalOf(f.parent.GetName(), strings.TrimSuffix(s.Name, "-config")); !ok {
			continue
		} else if strings.HasSuffix(s.Name, "-config") {
			at(ordinal).config = s
		} else {
			at(ordinal).state = s
		}
	}
	for i := range pods.Items {
		if ordinal, ok := ordinalOf(f.parent.GetName(), pods.Items[i].Name); ok {
			at(ordinal).pod = &pods.Items[i]
		}
	}
	f.replicas = f.replicas[:0]
	for _, ordinal := range slices.Sorted(maps.Keys(all)) {
		f.replicas = append(f.replicas, *all[ordinal])
	}
	return nil
}

// ordinalOf returns the number in the name of a replica.
func ordinalOf(parent, name string) (int, bool) {
	number, ok := strings.CutPrefix(name, parent+"-")
	ordinal, err := strconv.Atoi(number)
	return ordinal, ok && err == nil && ordinal >= 0 && strconv.Itoa(ordinal) == number
}

// wanted returns the replicas that there should be.
func (f *fleet) wanted() []replica { return f.replicas[:f.parent.Replicas()] }

// surplus returns the replicas that are too many.
func (f *fleet) surplus() []replica { return f.replicas[f.parent.Replicas():] }

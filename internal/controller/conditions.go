// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/tailapi"
)

// Reasons of our own.
const (
	reasonScaledToZero      = "ScaledToZero"
	reasonNoStaticEndpoints = "StaticEndpointsUnavailable"
	reasonDeleting          = "ProxyGroupDeleting"
	reasonUnknown           = "Unknown"
	reasonReachable         = "Reachable"
)

// setConditions sets the status by what the pass found. failed is the error of the API
// server that ended it, or nil.
func (p *pass) setConditions(failed error) {
	p.setDevices()
	wanted := len(p.wanted())
	running, ready := p.count(replica.running), p.count(p.ready)

	switch {
	case p.invalid != "":
		p.condition(v1alpha1.KubeAPIServerProxyValid, metav1.ConditionFalse, v1alpha1.ReasonKubeAPIServerProxyInvalid, p.invalid)
	case p.owns(p.serviceName()):
		p.condition(v1alpha1.KubeAPIServerProxyValid, metav1.ConditionTrue, v1alpha1.ReasonKubeAPIServerProxyValid, "the Tailscale Service "+p.serviceName()+" is this group's")
	default:
		p.condition(v1alpha1.KubeAPIServerProxyValid, metav1.ConditionUnknown, reasonUnknown, "it is not known yet whose the Tailscale Service "+p.serviceName()+" is")
	}

	available := fmt.Sprintf("%d/%d ProxyGroup pods running", running, wanted)
	switch {
	case running > 0 && running == wanted:
		p.condition(v1alpha1.ProxyGroupAvailable, metav1.ConditionTrue, v1alpha1.ReasonProxyGroupAvailable, available)
	case running > 0:
		p.condition(v1alpha1.ProxyGroupAvailable, metav1.ConditionTrue, v1alpha1.ReasonProxyGroupCreating, available)
	default:
		p.condition(v1alpha1.ProxyGroupAvailable, metav1.ConditionFalse, v1alpha1.ReasonProxyGroupCreating, available)
	}

	configured := fmt.Sprintf("%d/%d proxy backends ready and advertising", ready, wanted)
	if ready > 0 {
		p.condition(v1alpha1.KubeAPIServerProxyConfigured, metav1.ConditionTrue, v1alpha1.ReasonKubeAPIServerProxyConfigured, configured)
	} else {
		p.condition(v1alpha1.KubeAPIServerProxyConfigured, metav1.ConditionFalse, v1alpha1.ReasonKubeAPIServerProxyNoBackends, configured)
	}

	p.setByCheck(v1alpha1.ServiceApproved, checkService, "Approved", "NotApproved", "the tailnet routes "+p.serviceName()+" to the replicas", p.approvalHint())
	p.setByCheck(v1alpha1.CertificateReady, checkCertificate, "CertificateLoaded", "CertificateMissing", "the replicas have a valid certificate", "")
	p.setAPI()
	p.setReady(failed, ready)
	p.setURL(ready)
}

// condition sets one condition. Its message is bounded here, whoever said what is in it.
func (p *pass) condition(kind string, status metav1.ConditionStatus, reason, message string) bool {
	return meta.SetStatusCondition(&p.group.Status.Conditions, metav1.Condition{
		Type: kind, Status: status, Reason: reason, Message: plain(message, maxMessage), ObservedGeneration: p.group.Generation,
	})
}

// count counts the wanted replicas for which holds is true.
func (p *pass) count(holds func(replica) bool) int {
	n := 0
	for _, r := range p.wanted() {
		if holds(r) {
			n++
		}
	}
	return n
}

// setByCheck makes a condition of a check of the replicas that are on the tailnet.
func (p *pass) setByCheck(kind, check, good, bad, message, hint string) {
	running := 0
	var failing tally
	for _, r := range p.wanted() {
		if !r.running() {
			continue
		}
		running++
		if reason := r.checks()[check]; reason != "" {
			failing.add(r.ordinal, reason)
		}
	}
	switch {
	case running == 0:
		p.condition(kind, metav1.ConditionUnknown, reasonUnknown, "no replica is on the tailnet")
	case len(failing.reasons) > 0:
		text := failing.String()
		if hint != "" && !strings.Contains(text, "autoApprovers") {
			text += ". " + hint
		}
		p.condition(kind, metav1.ConditionFalse, bad, text)
	default:
		p.condition(kind, metav1.ConditionTrue, good, message)
	}
}

// approvalHint says how a tailnet approves the replicas.
func (p *pass) approvalHint() string {
	tags := `"` + strings.Join(p.tags(), `", "`) + `"`
	return fmt.Sprintf(`Unless it is on its way: approve the hosts of %s in the admin console, or let the tailnet policy do it: "autoApprovers": {"services": {%q: [%s]}}`,
		p.serviceName(), p.serviceName(), tags)
}

// setAPI tells whether the Tailscale API can be used. While nothing has asked it, the
// last answer counts.
func (p *pass) setAPI() {
	var e *tailapi.Error
	switch {
	case errors.As(p.apiErr, &e):
		if p.condition(v1alpha1.TailscaleAPIAvailable, metav1.ConditionFalse, string(e.Kind), e.Error()) {
			p.event(p.group, corev1.EventTypeWarning, "TailscaleAPIFailed", "UseTailscaleAPI", "%s", e.Error())
		}
	case p.invalid == "" && p.owns(p.serviceName()):
		p.condition(v1alpha1.TailscaleAPIAvailable, metav1.ConditionTrue, reasonReachable, "the Tailscale API answers")
	}
}

// setReady tells whether the group can be reached as its spec wants it, or the first
// thing that is in the way.
func (p *pass) setReady(failed error, ready int) {
	wanted := len(p.wanted())
	var message string
	status, reason := metav1.ConditionFalse, v1alpha1.ReasonProxyGroupCreating
	switch {
	case p.invalid != "":
		reason, message = v1alpha1.ReasonProxyGroupInvalid, p.invalid
	case failed != nil:
		reason, message = v1alpha1.ReasonProxyGroupCreationFailed, failed.Error()
	case wanted == 0:
		reason, message = reasonScaledToZero, "spec.replicas is 0, so nobody can connect"
	case p.noClass != "":
		reason, message = v1alpha1.ReasonProxyGroupInvalid, p.noClass
	case p.noEndpoint != "":
		reason, message = reasonNoStaticEndpoints, p.noEndpoint
	case ready == wanted:
		status, reason, message = metav1.ConditionTrue, v1alpha1.ReasonProxyGroupReady, fmt.Sprintf("%d/%d replicas are ready", ready, wanted)
	case p.apiErr != nil && p.count(func(r replica) bool { return r.pod != nil }) < wanted:
		reason, message = v1alpha1.ReasonProxyGroupCreationFailed, p.apiErr.Error()
	default:
		message = fmt.Sprintf("%d/%d replicas are ready%s", ready, wanted, p.missing())
	}
	before := meta.FindStatusCondition(p.seen.Conditions, v1alpha1.ProxyGroupReady)
	p.condition(v1alpha1.ProxyGroupReady, status, reason, message)
	switch {
	case before != nil && before.Reason == reason && before.Status == status:
	case status == metav1.ConditionTrue:
		p.event(p.group, corev1.EventTypeNormal, reason, "Reconcile", "%s", message)
	case reason != v1alpha1.ReasonProxyGroupCreating && reason != reasonScaledToZero:
		p.event(p.group, corev1.EventTypeWarning, reason, "Reconcile", "%s", message)
	}
}

// missing says what each replica that is not ready lacks.
func (p *pass) missing() string {
	var t tally
	for _, r := range p.wanted() {
		switch noKey := p.waitsForKey(r); {
		case p.ready(r):
			continue
		case noKey != "":
			t.add(r.ordinal, noKey)
		case r.pod == nil:
			t.add(r.ordinal, "has no pod")
		case !r.live():
			t.add(r.ordinal, "its pod is "+podState(r.pod))
		case !p.current(r):
			t.add(r.ordinal, "is about to be replaced")
		case len(r.checks()) == 0:
			t.add(r.ordinal, "its pod is not ready yet")
		default:
			t.add(r.ordinal, firstCheck(r.checks()))
		}
	}
	if len(t.reasons) == 0 {
		return ""
	}
	return "; " + t.String()
}

// firstCheck returns what fails first, in the order in which a replica comes up.
func firstCheck(checks map[string]string) string {
	for _, name := range []string{"shutdown", checkTailnet, checkCertificate, "apiserver", "impersonator", "listening", checkService} {
		if reason := checks[name]; reason != "" {
			return name + ": " + reason
		}
	}
	for _, name := range slices.Sorted(maps.Keys(checks)) {
		return name + ": " + checks[name]
	}
	return ""
}

// podState says what a pod waits for, as far as its status tells.
func podState(pod *corev1.Pod) string {
	if pod.DeletionTimestamp != nil {
		return "terminating"
	}
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Waiting != nil && c.State.Waiting.Reason != "" {
			return strings.TrimSpace(c.State.Waiting.Reason + " " + c.State.Waiting.Message)
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return c.Reason + ": " + c.Message
		}
	}
	return "starting"
}

// setDevices lists the devices of replicas whose pods run now.
func (p *pass) setDevices() {
	p.group.Status.Devices = nil
	for _, r := range p.replicas {
		name, _ := r.hostname()
		if !r.live() || r.deviceID() == "" || name == "" {
			continue
		}
		device := v1alpha1.TailnetDevice{Hostname: name, TailnetIPs: r.ips()}
		if r.config != nil && len(r.config.Data[keyStaticEndpoints]) > 0 {
			device.StaticEndpoints = strings.Split(string(r.config.Data[keyStaticEndpoints]), ",")
		}
		if !slices.ContainsFunc(p.group.Status.Devices, func(d v1alpha1.TailnetDevice) bool { return d.Hostname == name }) {
			p.group.Status.Devices = append(p.group.Status.Devices, device)
		}
	}
}

// setURL tells where the group can be reached while somebody can connect.
func (p *pass) setURL(ready int) {
	p.group.Status.URL = ""
	if ready == 0 || p.foreign {
		return
	}
	for _, r := range p.wanted() {
		if _, domain := r.hostname(); p.ready(r) && domain != "" {
			p.group.Status.URL = "https://" + p.group.Hostname() + "." + domain
			return
		}
	}
}

// setDeleting tells what deletion waits for.
func (p *pass) setDeleting(left string) {
	p.group.Status.URL = ""
	before := meta.FindStatusCondition(p.seen.Conditions, v1alpha1.ProxyGroupReady)
	p.condition(v1alpha1.ProxyGroupReady, metav1.ConditionFalse, reasonDeleting, left)
	if p.apiErr != nil && (before == nil || before.Message != left) {
		p.event(p.group, corev1.EventTypeWarning, "DeletionPending", "Delete", "%s", left)
	}
}

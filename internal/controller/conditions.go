// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/health"
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

	p.setByCheck(v1alpha1.ServiceApproved, health.CheckService, "Approved", "NotApproved", "the tailnet routes "+p.serviceName()+" to the replicas", p.approvalHint())
	p.setByCheck(v1alpha1.CertificateReady, health.CheckCertificate, "CertificateLoaded", "CertificateMissing", "the replicas have a valid certificate", "")
	p.setAPI(p.invalid == "" && p.owns(p.serviceName()))
	p.setReady(failed, ready)
	p.setURL(ready)
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
	tags := `"` + strings.Join(p.tags, `", "`) + `"`
	return fmt.Sprintf(`Unless it is on its way: approve the hosts of %s in the admin console, or let the tailnet policy do it: "autoApprovers": {"services": {%q: [%s]}}`,
		p.serviceName(), p.serviceName(), tags)
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
	p.tellReady(status, reason, message, reason == v1alpha1.ReasonProxyGroupCreating || reason == reasonScaledToZero)
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

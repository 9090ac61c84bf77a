// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Types of conditions of a ProxyGroup.
const (
	// ProxyGroupAvailable is true while at least one replica is on the tailnet.
	ProxyGroupAvailable = "ProxyGroupAvailable"
	// ProxyGroupReady is true when all replicas can be reached at the URL of the status.
	ProxyGroupReady = "ProxyGroupReady"
	// KubeAPIServerProxyValid is true when the group's Tailscale Service is its own: the
	// name is free, or this group has it.
	KubeAPIServerProxyValid = "KubeAPIServerProxyValid"
	// KubeAPIServerProxyConfigured is true while at least one replica advertises the
	// Tailscale Service.
	KubeAPIServerProxyConfigured = "KubeAPIServerProxyConfigured"
	// ServiceApproved is true when the tailnet has approved every replica that is on it
	// as a host of the Tailscale Service.
	ServiceApproved = "ServiceApproved"
	// CertificateReady is true when there is a valid certificate for the Tailscale Service.
	CertificateReady = "CertificateReady"
	// TailscaleAPIAvailable is false while the Tailscale API refuses or does not answer. A
	// group that serves goes on serving.
	TailscaleAPIAvailable = "TailscaleAPIAvailable"
)

// Reasons of ProxyGroupAvailable and ProxyGroupReady, as in the column STATUS.
const (
	ReasonProxyGroupReady          = "ProxyGroupReady"
	ReasonProxyGroupAvailable      = "ProxyGroupAvailable"
	ReasonProxyGroupCreating       = "ProxyGroupCreating"
	ReasonProxyGroupCreationFailed = "ProxyGroupCreationFailed"
	ReasonProxyGroupInvalid        = "ProxyGroupInvalid"
)

// Reasons of KubeAPIServerProxyValid and KubeAPIServerProxyConfigured.
const (
	ReasonKubeAPIServerProxyValid      = "KubeAPIServerProxyValid"
	ReasonKubeAPIServerProxyInvalid    = "KubeAPIServerProxyInvalid"
	ReasonKubeAPIServerProxyConfigured = "KubeAPIServerProxyConfigured"
	ReasonKubeAPIServerProxyNoBackends = "KubeAPIServerProxyNoBackends"
)

// RecorderReady is the type of the condition of a Recorder that is true when all its
// replicas take recordings. Its message names the fields that have no effect, and says when
// recordings are lost with their pod.
const RecorderReady = "RecorderReady"

// Reasons of RecorderReady, as in the column STATUS.
const (
	ReasonRecorderCreated        = "RecorderCreated"
	ReasonRecorderCreating       = "RecorderCreating"
	ReasonRecorderCreationFailed = "RecorderCreationFailed"
	ReasonRecorderInvalid        = "RecorderInvalid"
)

// ProxyClassReady is the type of the condition of a ProxyClass. It is true when ProxyGroups
// can use the class; its message names the fields that have no effect.
const ProxyClassReady = "ProxyClassReady"

// Reasons of ProxyClassReady.
const (
	ReasonProxyClassValid   = "ProxyClassValid"
	ReasonProxyClassInvalid = "ProxyClassInvalid"
)

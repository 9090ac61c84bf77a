// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ProxyGroup is a group of replicas that serve kube-apiserver on a tailnet under one name.
// Its name is that of the objects in the operator's namespace; unless the spec says
// otherwise it is also the name on the tailnet, and the prefix of the replicas' names.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=pg
// +kubebuilder:metadata:annotations="tailhelm.github.io/revision=1"
// +kubebuilder:metadata:labels={"app.kubernetes.io/name=tailscale-operator","app.kubernetes.io/part-of=tailhelm"}
// +kubebuilder:printcolumn:name="Status",type="string",JSONPath=`.status.conditions[?(@.type == "ProxyGroupReady")].reason`,description="Whether the group can be reached, or why not."
// +kubebuilder:printcolumn:name="URL",type="string",JSONPath=`.status.url`,description="Where kube-apiserver can be reached on the tailnet."
// +kubebuilder:printcolumn:name="Type",type="string",JSONPath=`.spec.type`,description="What the replicas serve."
// +kubebuilder:printcolumn:name="Age",type="date",JSONPath=".metadata.creationTimestamp"
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 50",message="metadata.name has more than 50 characters, too many for the names of the replicas' Pods and Services: choose a shorter one"
// +kubebuilder:validation:XValidation:rule="!self.metadata.name.contains('.')",message="metadata.name contains a dot, so it cannot be a host name: use letters, digits and dashes"
// +kubebuilder:validation:XValidation:rule="!(self.metadata.name in ['operator', 'kube-apiserver-auth-proxy'])",message="metadata.name is that of the operator's own objects, operator or kube-apiserver-auth-proxy: choose another"
// +kubebuilder:validation:XValidation:rule="size(has(self.spec.hostnamePrefix) ? self.spec.hostnamePrefix : self.metadata.name) + 1 + size(string((has(self.spec.replicas) && self.spec.replicas > 0 ? self.spec.replicas : 2) - 1)) <= 63",message="spec.hostnamePrefix is too long: with a dash and the number of the last replica it must fit into the 63 characters of a host name"
// +kubebuilder:validation:XValidation:rule="!((has(self.spec.kubeAPIServer) && has(self.spec.kubeAPIServer.hostname) ? self.spec.kubeAPIServer.hostname : self.metadata.name).startsWith((has(self.spec.hostnamePrefix) ? self.spec.hostnamePrefix : self.metadata.name) + '-') && (has(self.spec.kubeAPIServer) && has(self.spec.kubeAPIServer.hostname) ? self.spec.kubeAPIServer.hostname : self.metadata.name).substring(size((has(self.spec.hostnamePrefix) ? self.spec.hostnamePrefix : self.metadata.name)) + 1).matches('^[0-9]+$'))",message="spec.kubeAPIServer.hostname (without it, metadata.name) can be the name of a replica, which is spec.hostnamePrefix with a dash and a number: choose another"
type ProxyGroup struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What the group should be.
	Spec ProxyGroupSpec `json:"spec"`

	// What the operator made of it.
	// +optional
	Status ProxyGroupStatus `json:"status,omitzero"`
}

// ProxyGroupList is a list of ProxyGroups.
//
// +kubebuilder:object:root=true
type ProxyGroupList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`

	Items []ProxyGroup `json:"items"`
}

// ProxyGroupSpec says what a group should be.
//
// +kubebuilder:validation:XValidation:rule="!has(self.kubeAPIServer) || self.type == 'kube-apiserver'",message="spec.kubeAPIServer is for the type kube-apiserver only: remove it, or set spec.type to kube-apiserver"
// +kubebuilder:validation:XValidation:rule="has(self.tags) == has(oldSelf.tags) && (!has(self.tags) || self.tags == oldSelf.tags)",message="spec.tags is immutable, because devices keep the tags that they joined with: delete the ProxyGroup and create it anew"
type ProxyGroupSpec struct {
	// What the replicas serve. This operator has kube-apiserver only.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="spec.type is immutable: delete the ProxyGroup and create it anew"
	// +kubebuilder:validation:XValidation:rule="self == 'kube-apiserver'",message="this operator serves ProxyGroups of the type kube-apiserver only; ingress and egress need the official operator of Tailscale"
	Type ProxyGroupType `json:"type"`

	// Tags of the replicas' devices and of the Tailscale Service. Without it they are what the
	// operator's default (tag:k8s unless configured otherwise) is when it first sees the
	// ProxyGroup: the annotation tailscale.com/tags notes them. They cannot be changed later.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	Tags []Tag `json:"tags,omitempty"`

	// How many replicas to run: 2 without it. With 0 nobody can connect, and the name on
	// the tailnet stays reserved.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	Replicas *int32 `json:"replicas,omitempty"`

	// What the names of the replicas' devices begin with; a dash and the replica's number
	// follow. Without it, the ProxyGroup's name. A device whose name is taken on the
	// tailnet gets a number more.
	// +optional
	HostnamePrefix HostnamePrefix `json:"hostnamePrefix,omitempty"`

	// Name of a ProxyClass: what the replicas' pods look like. Without it, the operator's
	// default ProxyClass, if there is one.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	ProxyClass string `json:"proxyClass,omitempty"`

	// How kube-apiserver is served.
	// +optional
	KubeAPIServer *KubeAPIServerConfig `json:"kubeAPIServer,omitempty"`

	// Name of a Tailnet of the official operator. This operator has one tailnet, that of its
	// own credentials, so only the empty name is accepted.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self == ''",message="this operator has one tailnet, that of its credentials: remove spec.tailnet, and install another release for another tailnet"
	Tailnet string `json:"tailnet,omitempty"`
}

// KubeAPIServerConfig says how kube-apiserver is served.
type KubeAPIServerConfig struct {
	// auth: requests reach kube-apiserver as the tailnet identity of the caller, by
	// impersonation. noauth: they reach it with the caller's own Kubernetes credentials.
	// Without it, auth.
	// +optional
	Mode *APIServerProxyMode `json:"mode,omitempty"`

	// Name of the group on the tailnet: that of a Tailscale Service. Without it, the
	// ProxyGroup's name.
	// +optional
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`
	// +kubebuilder:validation:MaxLength=63
	Hostname string `json:"hostname,omitempty"`
}

// ProxyGroupType is what the replicas of a ProxyGroup serve.
//
// +kubebuilder:validation:Type=string
// +kubebuilder:validation:Enum=egress;ingress;kube-apiserver
type ProxyGroupType string

// ProxyGroupTypeKubernetesAPIServer is the type of groups that serve kube-apiserver.
const ProxyGroupTypeKubernetesAPIServer ProxyGroupType = "kube-apiserver"

// APIServerProxyMode is whose credentials kube-apiserver gets to see.
//
// +kubebuilder:validation:Type=string
// +kubebuilder:validation:Enum=auth;noauth
type APIServerProxyMode string

// Modes of a kube-apiserver proxy.
const (
	APIServerProxyModeAuth   APIServerProxyMode = "auth"
	APIServerProxyModeNoAuth APIServerProxyMode = "noauth"
)

// Tag is a tag of the tailnet policy.
//
// +kubebuilder:validation:Type=string
// +kubebuilder:validation:Pattern=`^tag:[a-zA-Z][a-zA-Z0-9-]*$`
// +kubebuilder:validation:MaxLength=63
type Tag string

// HostnamePrefix is what names of devices begin with.
//
// +kubebuilder:validation:Type=string
// +kubebuilder:validation:Pattern=`^[a-z0-9][a-z0-9-]{0,61}$`
// +kubebuilder:validation:MaxLength=62
type HostnamePrefix string

// ProxyGroupStatus is what the operator made of a group.
type ProxyGroupStatus struct {
	ReplicaStatus `json:",inline"`

	// Where kube-apiserver can be reached on the tailnet. Empty while nobody can connect.
	// +optional
	URL string `json:"url,omitempty"`
}

// defaultReplicas is how many replicas a group has that does not say.
const defaultReplicas = 2

// Replicas returns how many replicas the group should have.
func (g *ProxyGroup) Replicas() int32 {
	if g.Spec.Replicas == nil {
		return defaultReplicas
	}
	return *g.Spec.Replicas
}

// Mode returns whose credentials kube-apiserver gets to see.
func (g *ProxyGroup) Mode() APIServerProxyMode {
	if g.Spec.KubeAPIServer == nil || g.Spec.KubeAPIServer.Mode == nil {
		return APIServerProxyModeAuth
	}
	return *g.Spec.KubeAPIServer.Mode
}

// Hostname returns the group's name on the tailnet, that of its Tailscale Service without
// the prefix svc:.
func (g *ProxyGroup) Hostname() string {
	if g.Spec.KubeAPIServer == nil || g.Spec.KubeAPIServer.Hostname == "" {
		return g.Name
	}
	return g.Spec.KubeAPIServer.Hostname
}

// HostnamePrefix returns what the names of the replicas' devices begin with; a dash and the
// replica's number follow.
func (g *ProxyGroup) HostnamePrefix() string {
	if g.Spec.HostnamePrefix == "" {
		return g.Name
	}
	return string(g.Spec.HostnamePrefix)
}

// ReplicaStatus returns the part of the status that all kinds with replicas have, to change.
func (g *ProxyGroup) ReplicaStatus() *ReplicaStatus { return &g.Status.ReplicaStatus }

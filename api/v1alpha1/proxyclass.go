// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ProxyClass is what the pods of ProxyGroups look like. All fields of the official operator
// are accepted. Those that mean nothing to the pods of this operator are named by the
// condition ProxyClassReady.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:metadata:annotations="tailhelm.github.io/revision=1"
// +kubebuilder:metadata:labels={"app.kubernetes.io/name=tailscale-operator","app.kubernetes.io/part-of=tailhelm"}
// +kubebuilder:printcolumn:name="Status",type="string",JSONPath=`.status.conditions[?(@.type == "ProxyClassReady")].reason`,description="Whether ProxyGroups can use the class."
// +kubebuilder:printcolumn:name="Age",type="date",JSONPath=".metadata.creationTimestamp"
type ProxyClass struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What the pods should look like.
	Spec ProxyClassSpec `json:"spec"`

	// What the operator made of it.
	// +optional
	Status ProxyClassStatus `json:"status,omitzero"`
}

// ProxyClassList is a list of ProxyClasses.
//
// +kubebuilder:object:root=true
type ProxyClassList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`

	Items []ProxyClass `json:"items"`
}

// ProxyClassSpec says what the pods of ProxyGroups should look like.
type ProxyClassSpec struct {
	// The StatefulSet of the group, and its pods.
	// +optional
	StatefulSet *StatefulSet `json:"statefulSet,omitempty"`

	// Whether the replicas' metrics get a Service, and a ServiceMonitor.
	// +optional
	Metrics *Metrics `json:"metrics,omitempty"`

	// How the replicas' devices behave on the tailnet.
	// +optional
	TailscaleConfig *TailscaleConfig `json:"tailscale,omitempty"`

	// Ask the staging environment of Let's Encrypt for certificates. Nobody trusts these
	// certificates; its limits are wide. For tests.
	// +optional
	UseLetsEncryptStagingEnvironment bool `json:"useLetsEncryptStagingEnvironment,omitempty"`

	// Addresses outside the tailnet at which others reach the replicas directly, where they
	// could otherwise reach them through relays only.
	// +optional
	StaticEndpoints *StaticEndpointsConfig `json:"staticEndpoints,omitempty"`
}

// StaticEndpointsConfig is how replicas get addresses outside the tailnet.
type StaticEndpointsConfig struct {
	// A NodePort Service for each replica, whose endpoints are external addresses of nodes.
	NodePort *NodePortConfig `json:"nodePort"`
}

// NodePortConfig is which ports and nodes serve replicas.
type NodePortConfig struct {
	// Ports to choose from, one for each replica. They must be of the cluster's range of
	// node ports.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Ports []PortRange `json:"ports"`

	// Labels of the nodes whose external addresses are used: all nodes without it.
	// +optional
	Selector map[string]string `json:"selector,omitempty"`
}

// PortRange is a port, or the ports from one to another.
//
// +kubebuilder:validation:XValidation:rule="!has(self.endPort) || self.endPort == 0 || self.endPort >= self.port",message="endPort must not be smaller than port"
type PortRange struct {
	// The port, or the first one.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=65535
	Port uint16 `json:"port"`

	// The last port. Without it there is one port only.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	EndPort uint16 `json:"endPort,omitempty"`
}

// TailscaleConfig is how devices behave on the tailnet.
type TailscaleConfig struct {
	// Use the routes to subnets that other devices of the tailnet advertise.
	// +optional
	AcceptRoutes bool `json:"acceptRoutes,omitempty"`
}

// StatefulSet is what the group's StatefulSet looks like.
type StatefulSet struct {
	// Labels of the StatefulSet. The operator's own win over them.
	// +optional
	Labels Labels `json:"labels,omitempty"`

	// Annotations of the StatefulSet.
	// +optional
	Annotations map[string]string `json:"annotations,omitempty"`

	// The pods.
	// +optional
	Pod *Pod `json:"pod,omitempty"`
}

// Pod is what the group's pods look like.
type Pod struct {
	// Labels of the pods. The operator's own win over them.
	// +optional
	Labels Labels `json:"labels,omitempty"`

	// Annotations of the pods.
	// +optional
	Annotations map[string]string `json:"annotations,omitempty"`

	// Affinity of the pods.
	// +optional
	Affinity *corev1.Affinity `json:"affinity,omitempty"`

	// The container of the proxy.
	// +optional
	TailscaleContainer *Container `json:"tailscaleContainer,omitempty"`

	// The init container of other kinds of proxies: no effect, these pods have none.
	// +optional
	TailscaleInitContainer *Container `json:"tailscaleInitContainer,omitempty"`

	// Security context of the pods. Its fields win over those of the chart's default, which
	// meets the restricted Pod Security level.
	// +optional
	SecurityContext *corev1.PodSecurityContext `json:"securityContext,omitempty"`

	// Pull secrets of the pods, beside the chart's.
	// +optional
	ImagePullSecrets []corev1.LocalObjectReference `json:"imagePullSecrets,omitempty"`

	// Node for all pods.
	// +optional
	NodeName string `json:"nodeName,omitempty"`

	// Labels of the nodes on which the pods may run.
	// +optional
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`

	// Taints that the pods tolerate.
	// +optional
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`

	// Topology spread constraints of the pods, instead of the chart's default, which spreads
	// them over nodes. A constraint without a labelSelector gets that of the group.
	// +optional
	TopologySpreadConstraints []corev1.TopologySpreadConstraint `json:"topologySpreadConstraints,omitempty"`

	// PriorityClass of the pods.
	// +optional
	PriorityClassName string `json:"priorityClassName,omitempty"`

	// DNS policy of the pods.
	// +kubebuilder:validation:Enum=ClusterFirstWithHostNet;ClusterFirst;Default;None
	// +optional
	DNSPolicy *corev1.DNSPolicy `json:"dnsPolicy,omitempty"`

	// DNS configuration of the pods.
	// +optional
	DNSConfig *corev1.PodDNSConfig `json:"dnsConfig,omitempty"`
}

// Metrics is how the replicas' metrics can be reached.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.serviceMonitor) && self.serviceMonitor.enable && !self.enable)",message="metrics.serviceMonitor.enable needs metrics.enable: a ServiceMonitor without the Service finds nothing"
type Metrics struct {
	// Make a Service for the replicas' metrics, <name of the ProxyGroup>-metrics.
	Enable bool `json:"enable"`

	// A ServiceMonitor for Prometheus' operator.
	// +optional
	ServiceMonitor *ServiceMonitor `json:"serviceMonitor,omitempty"`
}

// ServiceMonitor is what the group's ServiceMonitor looks like.
type ServiceMonitor struct {
	// Make a ServiceMonitor. Its kind must be known to the cluster.
	Enable bool `json:"enable"`

	// Labels of the ServiceMonitor: often what Prometheus selects by.
	// +optional
	Labels Labels `json:"labels,omitempty"`
}

// Container is what a container looks like.
type Container struct {
	// Environment variables. The operator's own win over them.
	// +optional
	Env []Env `json:"env,omitempty"`

	// The image, with tag or digest. It must have tailhelm as its entrypoint.
	// +optional
	Image string `json:"image,omitempty"`

	// Pull policy of the image.
	// +kubebuilder:validation:Enum=Always;Never;IfNotPresent
	// +optional
	ImagePullPolicy corev1.PullPolicy `json:"imagePullPolicy,omitempty"`

	// Resources of the container.
	// +optional
	Resources corev1.ResourceRequirements `json:"resources,omitzero"`

	// Security context of the container. Its fields win over those of the chart's default,
	// which meets the restricted Pod Security level.
	// +optional
	SecurityContext *corev1.SecurityContext `json:"securityContext,omitempty"`

	// Debugging of other kinds of proxies: no effect, the metrics port has all there is.
	// +optional
	Debug *Debug `json:"debug,omitempty"`
}

// Debug is whether a container serves debugging endpoints.
type Debug struct {
	// No effect.
	// +optional
	Enable bool `json:"enable,omitempty"`
}

// Env is an environment variable.
type Env struct {
	// Name of the variable.
	Name EnvName `json:"name"`

	// Its value. $(NAME) stands for the value of another variable.
	// +optional
	Value string `json:"value,omitempty"`
}

// EnvName is the name of an environment variable.
//
// +kubebuilder:validation:Type=string
// +kubebuilder:validation:Pattern=`^[-._a-zA-Z][-._a-zA-Z0-9]*$`
type EnvName string

// Labels are labels of an object.
type Labels map[string]LabelValue

// LabelValue is the value of a label.
//
// +kubebuilder:validation:Type=string
// +kubebuilder:validation:Pattern=`^(([a-zA-Z0-9][-._a-zA-Z0-9]*)?[a-zA-Z0-9])?$`
// +kubebuilder:validation:MaxLength=63
type LabelValue string

// ProxyClassStatus is what the operator made of a class.
type ProxyClassStatus struct {
	// Whether ProxyGroups can use the class (ProxyClassReady), and which of its fields have
	// no effect.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

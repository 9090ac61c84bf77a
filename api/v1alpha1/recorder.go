// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Recorder keeps the recordings of sessions that proxies of the tailnet send: it is the
// recorder that a grant of the tailnet policy names by its tag. Its name is that of the
// objects in the operator's namespace, and with a dash and a number that of its devices.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=rec
// +kubebuilder:metadata:annotations="tailhelm.github.io/revision=1"
// +kubebuilder:metadata:labels={"app.kubernetes.io/name=tailscale-operator","app.kubernetes.io/part-of=tailhelm"}
// +kubebuilder:printcolumn:name="Status",type="string",JSONPath=`.status.conditions[?(@.type == "RecorderReady")].reason`,description="Whether the recorder takes recordings, or why not."
// +kubebuilder:printcolumn:name="Device",type="string",JSONPath=`.status.devices[0].hostname`,description="Name of the first replica on the tailnet."
// +kubebuilder:printcolumn:name="Age",type="date",JSONPath=".metadata.creationTimestamp"
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 50",message="metadata.name has more than 50 characters, too many for the names of the replicas' Pods: choose a shorter one"
// +kubebuilder:validation:XValidation:rule="!self.metadata.name.contains('.')",message="metadata.name contains a dot, so it cannot be a host name: use letters, digits and dashes"
// +kubebuilder:validation:XValidation:rule="!(self.metadata.name in ['operator', 'kube-apiserver-auth-proxy'])",message="metadata.name is that of the operator's own objects, operator or kube-apiserver-auth-proxy: choose another"
type Recorder struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// What the recorder should be.
	Spec RecorderSpec `json:"spec"`

	// What the operator made of it.
	// +optional
	Status RecorderStatus `json:"status,omitzero"`
}

// RecorderList is a list of Recorders.
//
// +kubebuilder:object:root=true
type RecorderList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`

	Items []Recorder `json:"items"`
}

// RecorderSpec says what a recorder should be.
//
// +kubebuilder:validation:XValidation:rule="has(self.tags) == has(oldSelf.tags) && (!has(self.tags) || self.tags == oldSelf.tags)",message="spec.tags is immutable, because devices keep the tags that they joined with: delete the Recorder and create it anew"
// +kubebuilder:validation:XValidation:rule="has(self.storage) == has(oldSelf.storage) && (!has(self.storage) || self.storage == oldSelf.storage)",message="spec.storage is immutable, because volumes of a StatefulSet cannot change: delete the Recorder and create it anew"
type RecorderSpec struct {
	// The StatefulSet of the recorder, and its pods.
	// +optional
	StatefulSet *RecorderStatefulSet `json:"statefulSet,omitempty"`

	// Tags of the replicas' devices: by one of them a grant names the recorder. Without it,
	// tag:k8s. They cannot be changed later.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	Tags []Tag `json:"tags,omitempty"`

	// No effect: nothing of this recorder can be read over the tailnet. Read recordings with
	// kubectl exec and tailhelm recorder list and play.
	// +optional
	EnableUI bool `json:"enableUI,omitempty"`

	// Where recordings are kept. Without it they are in the pod, and are lost with it. It
	// cannot be changed later.
	// +optional
	Storage *RecorderStorage `json:"storage,omitempty"`

	// Which recordings are taken, and how long they are kept.
	// +optional
	Recordings *Recordings `json:"recordings,omitempty"`

	// How many replicas to run: 1 without it. Each keeps recordings of its own. Proxies try
	// them one after the other; the first that answers takes the session.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Replicas *int32 `json:"replicas,omitempty"`

	// Name of a Tailnet of the official operator. This operator has one tailnet, that of its
	// own credentials, so only the empty name is accepted.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self == ''",message="this operator has one tailnet, that of its credentials: remove spec.tailnet, and install another release for another tailnet"
	Tailnet string `json:"tailnet,omitempty"`
}

// RecorderStorage is where recordings are kept.
//
// +kubebuilder:validation:XValidation:rule="!has(self.s3)",message="this recorder keeps files: use spec.storage.persistentVolumeClaim instead of s3, with a StorageClass of your choice"
type RecorderStorage struct {
	// A bucket, which this operator does not support.
	// +optional
	S3 *S3 `json:"s3,omitempty"`

	// A volume for each replica, which outlives the pod.
	// +optional
	PersistentVolumeClaim *RecorderVolume `json:"persistentVolumeClaim,omitempty"`
}

// S3 is a bucket, which this operator does not support. The fields are there for the API
// server to say so.
type S3 struct {
	// No effect.
	// +optional
	Endpoint string `json:"endpoint,omitempty"`

	// No effect.
	// +optional
	Bucket string `json:"bucket,omitempty"`

	// No effect.
	// +optional
	Credentials S3Credentials `json:"credentials,omitzero"`
}

// S3Credentials are those for a bucket.
type S3Credentials struct {
	// No effect.
	// +optional
	Secret S3Secret `json:"secret,omitzero"`
}

// S3Secret names a Secret with credentials for a bucket.
type S3Secret struct {
	// No effect.
	// +optional
	Name string `json:"name,omitempty"`
}

// RecorderVolume is a volume that is claimed for each replica.
//
// +kubebuilder:validation:XValidation:rule="!string(self.size).startsWith('-') && string(self.size).matches('[1-9]')",message="size must be above 0, for example 10Gi"
type RecorderVolume struct {
	// How large the volume is, for example 10Gi.
	Size resource.Quantity `json:"size"`

	// StorageClass of the volume. Without it, the cluster's default.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	StorageClassName *string `json:"storageClassName,omitempty"`

	// Access modes of the volume: ReadWriteOnce without it.
	// +optional
	// +kubebuilder:validation:MaxItems=4
	// +kubebuilder:validation:items:Enum=ReadWriteOnce;ReadWriteOncePod;ReadWriteMany
	// +listType=set
	AccessModes []corev1.PersistentVolumeAccessMode `json:"accessModes,omitempty"`

	// What becomes of the volume when the Recorder is deleted: it stays (Retain, the default),
	// or it is deleted with all recordings (Delete). When there are fewer replicas, volumes
	// stay.
	// +optional
	// +kubebuilder:validation:Enum=Retain;Delete
	WhenDeleted string `json:"whenDeleted,omitempty"`
}

// Recordings is which recordings are taken, and how long they are kept.
//
// +kubebuilder:validation:XValidation:rule="!has(self.keep) || duration(self.keep) >= duration('0s')",message="keep must not be negative: give a duration, for example 720h, or 0s for forever"
// +kubebuilder:validation:XValidation:rule="!has(self.maxTotal) || !string(self.maxTotal).startsWith('-')",message="maxTotal must not be negative: give a size, for example 10Gi, or 0 for all there is"
// +kubebuilder:validation:XValidation:rule="!has(self.maxRecording) || !string(self.maxRecording).startsWith('-')",message="maxRecording must not be negative: give a size, for example 1Gi, or 0 for all there is"
// +kubebuilder:validation:XValidation:rule="!has(self.minFree) || !string(self.minFree).startsWith('-')",message="minFree must not be negative: give a size, for example 256Mi, or 0"
type Recordings struct {
	// How long recordings are kept, as a duration in hours (h), minutes (m) and seconds (s),
	// for example 720h. Without it, forever.
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9]+(h|m|s))+$`
	// +kubebuilder:validation:MaxLength=32
	Keep string `json:"keep,omitempty"`

	// How much all recordings of a replica may take, for example 10Gi. The oldest are deleted
	// first, but see keepAtLeast. Without it, all there is.
	// +optional
	MaxTotal *resource.Quantity `json:"maxTotal,omitempty"`

	// How long recordings stay however much all take: 168h without it, 0s for no time. While
	// younger ones take all of maxTotal, recordings are refused.
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9]+(h|m|s))+$`
	// +kubebuilder:validation:MaxLength=32
	KeepAtLeast string `json:"keepAtLeast,omitempty"`

	// How much one recording may take: 1Gi without it. A session that must be recorded ends
	// there.
	// +optional
	MaxRecording *resource.Quantity `json:"maxRecording,omitempty"`

	// How much of the file system is left free: 256Mi without it. Below, recordings are
	// refused.
	// +optional
	MinFree *resource.Quantity `json:"minFree,omitempty"`

	// Tags of devices that may send recordings: one of them is enough. Without it,
	// tag:k8s-operator and tag:k8s.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	From []Tag `json:"from,omitempty"`
}

// RecorderStatefulSet is what the recorder's StatefulSet looks like.
type RecorderStatefulSet struct {
	// Labels of the StatefulSet. The operator's own win over them.
	// +optional
	Labels Labels `json:"labels,omitempty"`

	// Annotations of the StatefulSet.
	// +optional
	Annotations map[string]string `json:"annotations,omitempty"`

	// The pods.
	// +optional
	Pod *RecorderPod `json:"pod,omitempty"`
}

// RecorderPod is what the recorder's pods look like. What it leaves out is as the chart's
// value workloads says.
type RecorderPod struct {
	// Labels of the pods. The operator's own win over them.
	// +optional
	Labels Labels `json:"labels,omitempty"`

	// Annotations of the pods.
	// +optional
	Annotations map[string]string `json:"annotations,omitempty"`

	// Affinity of the pods.
	// +optional
	Affinity *corev1.Affinity `json:"affinity,omitempty"`

	// The container of the recorder.
	// +optional
	Container *RecorderContainer `json:"container,omitempty"`

	// Security context of the pods. Its fields win over those of the chart's default, which
	// meets the restricted Pod Security level.
	// +optional
	SecurityContext *corev1.PodSecurityContext `json:"securityContext,omitempty"`

	// Pull secrets of the pods, beside the chart's.
	// +optional
	ImagePullSecrets []corev1.LocalObjectReference `json:"imagePullSecrets,omitempty"`

	// Labels of the nodes on which the pods may run.
	// +optional
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`

	// Taints that the pods tolerate.
	// +optional
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`

	// The pods' ServiceAccount, which the operator makes.
	// +optional
	ServiceAccount *RecorderServiceAccount `json:"serviceAccount,omitempty"`
}

// RecorderServiceAccount is what the ServiceAccount of a recorder's pods looks like.
type RecorderServiceAccount struct {
	// Name of the ServiceAccount: that of the Recorder without it. One that exists already is
	// refused.
	// +optional
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([a-z0-9-.]{0,61}[a-z0-9])?$`
	// +kubebuilder:validation:MaxLength=63
	Name string `json:"name,omitempty"`

	// Annotations of the ServiceAccount.
	// +optional
	Annotations map[string]string `json:"annotations,omitempty"`
}

// RecorderContainer is what the container of a recorder looks like.
type RecorderContainer struct {
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
}

// RecorderStatus is what the operator made of a recorder.
type RecorderStatus struct {
	ReplicaStatus `json:",inline"`
}

// Replicas returns how many replicas the recorder should have.
func (r *Recorder) Replicas() int32 {
	if r.Spec.Replicas == nil {
		return 1
	}
	return *r.Spec.Replicas
}

// HostnamePrefix returns what the names of the replicas' devices begin with; a dash and the
// replica's number follow.
func (r *Recorder) HostnamePrefix() string { return r.Name }

// ReplicaStatus returns the part of the status that all kinds with replicas have, to change.
func (r *Recorder) ReplicaStatus() *ReplicaStatus { return &r.Status.ReplicaStatus }

// Durable reports whether recordings outlive the pod that took them.
func (r *Recorder) Durable() bool {
	return r.Spec.Storage != nil && r.Spec.Storage.PersistentVolumeClaim != nil
}

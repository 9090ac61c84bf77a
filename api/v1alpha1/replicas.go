// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ReplicaStatus is what the status of each kind has whose replicas are devices of the
// tailnet.
type ReplicaStatus struct {
	// What is true now: whether all is ready (ProxyGroupReady, RecorderReady), and what that
	// takes. The message of a condition that is not true says what to do.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// Devices of the replicas that are on the tailnet.
	// +listType=map
	// +listMapKey=hostname
	// +optional
	Devices []TailnetDevice `json:"devices,omitempty"`

	// What the operator made on the tailnet and has not yet seen gone. It is deleted by this
	// list.
	// +optional
	Tailnet *TailnetObjects `json:"tailnet,omitempty"`
}

// TailnetObjects are objects on the tailnet.
type TailnetObjects struct {
	// Names of Tailscale Services.
	// +listType=set
	// +optional
	Services []string `json:"services,omitempty"`

	// IDs of devices.
	// +listType=set
	// +optional
	Devices []string `json:"devices,omitempty"`
}

// TailnetDevice is a replica's device.
type TailnetDevice struct {
	// Name of the device on the tailnet: the first label of its full name.
	Hostname string `json:"hostname"`

	// Addresses of the device on the tailnet.
	// +optional
	TailnetIPs []string `json:"tailnetIPs,omitempty"`

	// Addresses and UDP ports outside the tailnet at which others can reach the device
	// directly, from the ProxyClass' staticEndpoints.
	// +optional
	StaticEndpoints []string `json:"staticEndpoints,omitempty"`
}

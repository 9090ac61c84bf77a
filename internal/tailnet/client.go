// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	typedcoordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// KubernetesClient is as much of a client for the API server as this package needs. Its
// type names the groups, because a program with the client of all of them
// ([k8s.io/client-go/kubernetes.Clientset]) is larger by a quarter.
type KubernetesClient interface {
	CoreV1() typedcorev1.CoreV1Interface
	CoordinationV1() typedcoordinationv1.CoordinationV1Interface
}

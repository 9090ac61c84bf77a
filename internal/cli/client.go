// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	typedcoordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

// kubernetesClient is a client for the groups of the API that the proxies use.
type kubernetesClient struct {
	core         *typedcorev1.CoreV1Client
	coordination *typedcoordinationv1.CoordinationV1Client
}

// newKubernetesClient returns a client for the API server of config.
func newKubernetesClient(config *rest.Config) (*kubernetesClient, error) {
	core, err := typedcorev1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("a client for the API server: %w", err)
	}
	coordination, err := typedcoordinationv1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("a client for the API server: %w", err)
	}
	return &kubernetesClient{core: core, coordination: coordination}, nil
}

func (c *kubernetesClient) CoreV1() typedcorev1.CoreV1Interface { return c.core }

func (c *kubernetesClient) CoordinationV1() typedcoordinationv1.CoordinationV1Interface {
	return c.coordination
}

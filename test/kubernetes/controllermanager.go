// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"fmt"

	"github.com/tailhelm/tailhelm/test/binary"
	"github.com/tailhelm/tailhelm/test/kubernetes/internal/process"
)

// startControllerManager starts kube-controller-manager. It does not wait: what
// tests see of it are the objects that it makes.
func (c *Cluster) startControllerManager(ctx context.Context) error {
	program, err := binary.Build(ctx, kubeControllerManager)
	if err != nil {
		return err
	}
	cert, err := c.ca.client("kube-controller-manager", "system:kube-controller-manager")
	if err != nil {
		return err
	}
	kubeconfig, err := c.KubeconfigFor("kube-controller-manager", c.certificateConfig(cert))
	if err != nil {
		return err
	}
	p, err := process.Serve(ctx, c.path("home"), c.path("kube-controller-manager.log"), program,
		"--kubeconfig="+kubeconfig,
		"--authentication-kubeconfig="+kubeconfig,
		"--authorization-kubeconfig="+kubeconfig,
		"--service-account-private-key-file="+c.serviceAccountKey(),
		"--root-ca-file="+c.ca.file(),
		"--use-service-account-credentials",
		// There is one, and it has no endpoints that anyone would ask.
		"--leader-elect=false",
		"--secure-port=0",
	)
	if err != nil {
		return fmt.Errorf("controller manager: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.controller = p
	return nil
}

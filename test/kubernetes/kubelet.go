// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/tailhelm/tailhelm/test/kubernetes/kubelet"
)

// kubeletClient is who the API server is to a kubelet.
const kubeletClient = "kube-apiserver-kubelet-client"

// Kubelet is a stand-in for a node; see package kubelet for what it does and what not.
type Kubelet = kubelet.Kubelet

// KubeletOptions configure a kubelet. The zero value works.
type KubeletOptions struct {
	// Name is the name of the Node. Default: "node".
	Name string
	// Labels are more labels of the Node.
	Labels map[string]string
	// Schedule binds to this node every Pod that names no node, as a scheduler does.
	// Without it, Pods have to name the node themselves (spec.nodeName).
	Schedule bool
}

// StartKubelet registers a node and runs its Pods' containers as processes of this
// machine, for kubectl exec, attach, logs, port-forward, cp and debug. It is no
// isolation: a container can do what the test can. The kubelet stops with Close, its
// own or the cluster's. Its log is kubelet-<name>.log in [Cluster.Dir].
func (c *Cluster) StartKubelet(ctx context.Context, o KubeletOptions) (*Kubelet, error) {
	o.Name = cmp.Or(o.Name, "node")
	k, err := c.startKubelet(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start kubelet: %w", err)
	}
	return k, nil
}

func (c *Cluster) startKubelet(ctx context.Context, o KubeletOptions) (*Kubelet, error) {
	config, err := c.UserConfig("kubelet-"+o.Name, "system:node:"+o.Name, "system:nodes")
	if err != nil {
		return nil, err
	}
	server, err := c.ca.server("kubelet-" + o.Name + "-server")
	if err != nil {
		return nil, err
	}
	certificate, err := tls.X509KeyPair(server.cert, server.key)
	if err != nil {
		return nil, err
	}
	dir := c.path("pods", o.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(c.path("kubelet-"+o.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	if !c.onClose(log.Close) {
		return nil, errors.Join(errClosed, log.Close())
	}
	k, err := kubelet.Start(ctx, kubelet.Options{
		Name:        o.Name,
		Labels:      o.Labels,
		Version:     Version,
		Config:      config,
		Certificate: certificate,
		ClientCAs:   c.ca.pool(),
		ClientName:  kubeletClient,
		Dir:         dir,
		Logger:      slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		return nil, err
	}
	if !c.onClose(k.Close) {
		return nil, errors.Join(errClosed, k.Close())
	}
	if o.Schedule {
		if err := c.startScheduler(k); err != nil {
			return nil, errors.Join(err, k.Close())
		}
	}
	return k, nil
}

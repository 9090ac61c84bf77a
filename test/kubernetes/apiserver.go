// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tailhelm/tailhelm/test/binary"
	"github.com/tailhelm/tailhelm/test/kubernetes/internal/process"
)

// issuer is the issuer and the default audience of ServiceAccount tokens.
const issuer = "https://kubernetes.default.svc.cluster.local"

// errClosed means that a cluster that is closed was asked to do something.
var errClosed = errors.New("the cluster is closed")

// auditPolicy logs each request once when it is answered, and long-running ones
// (watch, exec) also when they start.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
`

// startFirstAPIServer finds a port, makes what depends on it, and starts the API
// server.
func (c *Cluster) startFirstAPIServer(ctx context.Context) error {
	// Not in the time limit of a start.
	if _, err := binary.Build(ctx, kubeAPIServer); err != nil {
		return err
	}
	if err := os.WriteFile(c.path("audit-policy.yaml"), []byte(auditPolicy), 0o600); err != nil {
		return err
	}
	c.audit.path = c.path("audit.log")
	if _, err := c.ca.server("kube-apiserver", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"); err != nil {
		return err
	}
	if _, err := c.ca.client("apiserver-etcd-client", "apiserver"); err != nil {
		return err
	}
	if _, err := c.ca.client("apiserver-kubelet-client", kubeletClient); err != nil {
		return err
	}
	admin, err := c.ca.client("admin", "admin", "system:masters")
	if err != nil {
		return err
	}
	err = retryPorts(ctx, func(ctx context.Context) error {
		if c.port, err = freePort(ctx); err != nil {
			return err
		}
		if _, err := freshLog(c.apiServerLog()); err != nil {
			return err
		}
		c.config = c.certificateConfig(admin)
		return c.StartAPIServer(ctx)
	})
	if err != nil {
		return err
	}
	if c.client, err = kubernetes.NewForConfig(c.config); err != nil {
		return err
	}
	_, err = c.KubeconfigFor("admin", c.config)
	return err
}

// StartAPIServer starts the API server again after [Cluster.StopAPIServer] or
// [Cluster.KillAPIServer], on the same port with the same data, and waits until it
// is ready. It does nothing if the API server runs.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errClosed
	}
	if c.apiServer != nil {
		select {
		case <-c.apiServer.Done(): // It ended by itself.
		default:
			return nil
		}
	}
	program, err := binary.Build(ctx, kubeAPIServer)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not ready in %v", startTimeout))
	defer cancel()
	log := c.apiServerLog()
	p, err := process.Serve(ctx, c.path("home"), log, program, c.apiServerFlags()...)
	if err != nil {
		return err
	}
	transport, err := rest.TransportFor(c.config)
	if err != nil {
		return errors.Join(err, p.Kill())
	}
	if err := waitReady(ctx, p, log, c.URL()+"/readyz", &http.Client{Transport: transport}); err != nil {
		return err
	}
	c.apiServer = p
	return nil
}

// StopAPIServer has the API server end gracefully, as a rolling update of a control
// plane does: it finishes requests and then closes watches. If it has not ended when
// ctx ends, it is killed and StopAPIServer returns an error.
func (c *Cluster) StopAPIServer(ctx context.Context) error {
	return c.endAPIServer(func(p *process.Process) error { return p.Terminate(ctx) })
}

// KillAPIServer kills the API server, as a crash does.
func (c *Cluster) KillAPIServer() error {
	return c.endAPIServer((*process.Process).Kill)
}

func (c *Cluster) endAPIServer(end func(*process.Process) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.apiServer == nil {
		return nil
	}
	p := c.apiServer
	c.apiServer = nil
	return end(p)
}

func (c *Cluster) apiServerLog() string { return c.path("kube-apiserver.log") }

func (c *Cluster) apiServerFlags() []string {
	pki := func(name string) string { return c.path("pki", name) }
	flags := []string{
		"--etcd-servers=" + c.etcdURL,
		"--etcd-cafile=" + c.ca.file(),
		"--etcd-certfile=" + pki("apiserver-etcd-client.crt"),
		"--etcd-keyfile=" + pki("apiserver-etcd-client.key"),
		"--bind-address=127.0.0.1",
		"--secure-port=" + strconv.Itoa(c.port),
		"--tls-cert-file=" + pki("kube-apiserver.crt"),
		"--tls-private-key-file=" + pki("kube-apiserver.key"),
		"--client-ca-file=" + c.ca.file(),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
		"--allow-privileged",
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + c.serviceAccountKey(),
		"--service-account-signing-key-file=" + c.serviceAccountKey(),
		"--service-cluster-ip-range=10.0.0.0/24",
		// Without it, watches hold up the end of the API server for a minute.
		"--shutdown-watch-termination-grace-period=5s",
		// An Endpoints object cannot hold a loopback address.
		"--endpoint-reconciler-type=none",
		"--kubelet-certificate-authority=" + c.ca.file(),
		"--kubelet-client-certificate=" + pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + pki("apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--audit-policy-file=" + c.path("audit-policy.yaml"),
		"--audit-log-path=" + c.audit.path,
		"--audit-log-maxsize=0", // One file, never rotated.
	}
	return append(flags, c.options.APIServerFlags...)
}

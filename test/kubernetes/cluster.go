// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tailhelm/tailhelm/test/kubernetes/internal/process"
)

// serviceIP is the address of the Service "kubernetes", the first of the service
// network. Nothing routes to it.
var serviceIP = net.IPv4(10, 0, 0, 1)

// Options say how a cluster differs from the usual. The zero value works.
type Options struct {
	// APIServerFlags are more flags of kube-apiserver: "--goaway-chance=0.02". They
	// come last, so they win over the cluster's own.
	APIServerFlags []string
	// ControllerManager runs kube-controller-manager too: Deployments make Pods,
	// deleted namespaces go away, owners' deletion is cascaded. Without it, the
	// cluster itself gives each namespace its default ServiceAccount and the
	// ConfigMap kube-root-ca.crt, and nothing more.
	ControllerManager bool
	// Dir is an empty or absent folder for data, certificates and logs, which then
	// stays. Default: a temporary folder that Close removes.
	Dir string
}

// Cluster is a running control plane. Its methods may be called from several
// goroutines.
type Cluster struct {
	options Options
	dir     string
	ca      *authority
	config  *rest.Config // the administrator's
	client  kubernetes.Interface
	audit   auditLog

	etcd    *process.Process
	etcdURL string
	port    int // of the API server, the same for life

	// mu guards what starts and stops after Start.
	mu         sync.Mutex
	apiServer  *process.Process // nil while stopped
	controller *process.Process
	closers    []func() error // called by Close, last one first
	closed     bool
}

// Start starts a cluster and returns when it is ready: the API server's /readyz is
// true and the namespace default has its ServiceAccount. Programs that the cache
// lacks are built first, which takes minutes; see [Build]. ctx bounds the start
// alone. The caller calls Close.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c := &Cluster{options: o}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start a Kubernetes cluster: %w", err), c.Close())
	}
	return c, nil
}

// New starts a cluster that is closed when the test ends. It fails the test if the
// cluster cannot start. Logs of a test that failed are kept; the test says where.
func New(tb testing.TB, o Options) *Cluster {
	tb.Helper()
	c, err := Start(tb.Context(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("logs of the cluster: %s", c.dir)
		}
		if err := c.close(tb.Failed()); err != nil {
			tb.Errorf("close the cluster: %v", err)
		}
	})
	return c
}

func (c *Cluster) start(ctx context.Context) error {
	if err := c.makeFolder(); err != nil {
		return err
	}
	if err := c.makeCredentials(); err != nil {
		return err
	}
	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	if err := c.startFirstAPIServer(ctx); err != nil {
		return err
	}
	if c.options.ControllerManager {
		if err := c.startControllerManager(ctx); err != nil {
			return err
		}
	} else if err := c.startNamespaces(); err != nil {
		return err
	}
	return c.waitForServiceAccount(ctx, "default", "default")
}

// makeFolder makes the cluster's folder and the subfolders in it.
func (c *Cluster) makeFolder() error {
	if c.options.Dir == "" {
		dir, err := os.MkdirTemp("", "tailhelm-kubernetes-")
		if err != nil {
			return err
		}
		c.dir = dir
	} else {
		dir, err := filepath.Abs(c.options.Dir)
		if err != nil {
			return err
		}
		c.dir = dir
	}
	for _, sub := range []string{"pki", "etcd", "home", "kubeconfig"} {
		if err := os.MkdirAll(c.path(sub), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// makeCredentials makes the certificate authority, the key of ServiceAccount tokens
// and the administrator's certificate and client.
func (c *Cluster) makeCredentials() error {
	var err error
	if c.ca, err = newAuthority(c.path("pki")); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	_, err = writeKey(c.serviceAccountKey(), key)
	return err
}

func (c *Cluster) serviceAccountKey() string { return c.path("pki", "service-account.key") }

// path is a path below the cluster's folder.
func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// Dir is the cluster's folder. It holds etcd.log, kube-apiserver.log, audit.log and
// kube-controller-manager.log.
func (c *Cluster) Dir() string { return c.dir }

// onClose has Close call f. It reports false if the cluster is closed already; then
// the caller has to call f.
func (c *Cluster) onClose(f func() error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.closers = append(c.closers, f)
	return true
}

// Close ends every process of the cluster and of its kubelets at once and removes
// the cluster's folder, unless Options named it. Further calls do nothing.
func (c *Cluster) Close() error { return c.close(false) }

// close closes the cluster. Logs stay in the folder if keepLogs is set.
func (c *Cluster) close(keepLogs bool) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	closers := c.closers
	processes := []*process.Process{c.controller, c.apiServer, c.etcd}
	c.apiServer = nil
	c.mu.Unlock()

	var errs []error
	for i := len(closers) - 1; i >= 0; i-- {
		errs = append(errs, closers[i]())
	}
	for _, p := range processes {
		if p != nil {
			// The data is about to go: nothing to be gained from a graceful end.
			errs = append(errs, p.Kill())
		}
	}
	switch {
	case c.options.Dir != "" || c.dir == "":
	case keepLogs:
		errs = append(errs, os.RemoveAll(c.path("etcd")), os.RemoveAll(c.path("pki")), os.RemoveAll(c.path("kubeconfig")), os.RemoveAll(c.path("home")))
	default:
		errs = append(errs, os.RemoveAll(c.dir))
	}
	return errors.Join(errs...)
}

// startTimeout bounds the start of one server. It is generous: a machine that runs
// other tests is slow, and a server that ends by itself is noticed at once.
const startTimeout = 2 * time.Minute

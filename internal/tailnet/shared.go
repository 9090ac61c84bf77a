// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// SharedCertificates keep the certificate of a Service that several replicas host
// in memory. One replica, elected by a Lease, orders it from the tailnet and puts it
// into a Secret; all of them load it from there as soon as it changes.
type SharedCertificates struct {
	service *Service
	config  SharedConfig
	// domains are the names for which the tailnet issues the node certificates, and
	// order gets one of them. They are Tailscale's code, but for tests.
	domains func() []string
	order   func(ctx context.Context, domain string, minValidity time.Duration) (certPEM, keyPEM []byte, err error)
	current atomic.Pointer[tls.Certificate]
	// refused is why the tailnet would issue this device no certificate, while one is due, and
	// failure is why its last order failed.
	refused, failure orderFailure

	ordering sync.Mutex // held while this replica has the Lease; guards what follows
	// next is when it may order again after a failure: that outlasts the Lease.
	next    time.Time
	backoff wait.Backoff
}

// SharedConfig says where replicas share a certificate.
type SharedConfig struct {
	// Client reads and writes the objects.
	Client KubernetesClient
	// Namespace is that of the objects.
	Namespace string
	// Secret is the name of the Secret with the certificate, which exists. Its type
	// is kubernetes.io/tls. It needs get, list, watch and patch.
	Secret string
	// Lease is the name of the Lease, which exists. It needs get and update.
	Lease string
	// Identity is this replica's name in the Lease.
	Identity string
	// Staging says that certificates come from the staging environment of Let's Encrypt,
	// which nobody trusts. Without it, one from there is replaced at once.
	Staging bool
	// Log gets what becomes of the certificate.
	Log *slog.Logger
}

// SharedCertificates returns the certificates of the Service. They are obtained by
// [SharedCertificates.Run].
func (s *Service) SharedCertificates(config SharedConfig) *SharedCertificates {
	return &SharedCertificates{
		service: s, config: config, domains: s.node.server.CertDomains,
		order: func(ctx context.Context, domain string, minValidity time.Duration) (certPEM, keyPEM []byte, err error) {
			return s.node.client.CertPairWithValidity(ctx, domain, minValidity)
		},
	}
}

// GetCertificate returns the certificate, whatever name the client asks for. It errs
// before there is one.
func (c *SharedCertificates) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert := c.current.Load(); cert != nil {
		return cert, nil
	}
	return nil, errors.New("no certificate yet")
}

// Ready returns nil when there is a certificate for the Service that is valid now,
// and otherwise why there is none.
func (c *SharedCertificates) Ready(context.Context) error {
	err := cmp.Or(c.notOrdered(), errors.New("no certificate yet: waiting for the replica that orders it"))
	cert := c.current.Load()
	if cert != nil && !isFor(cert, c.service.Name()) {
		return fmt.Errorf("the certificate is for %v, not for %s: %w", names(cert), c.service.Name(), err)
	}
	if cert != nil && !c.suits(cert) {
		return fmt.Errorf("the certificate is one of Let's Encrypt's staging environment, which clients do not trust, and is about to be replaced: %w", err)
	}
	return validNow(cert, err)
}

// Warning returns nil, or why this replica could not renew a certificate that is valid now.
// One that leaves it to another replica does not know.
func (c *SharedCertificates) Warning(context.Context) error {
	return notRenewed(c.current.Load(), c.notOrdered())
}

// notOrdered returns nil, or why this replica has ordered no certificate although one is due.
func (c *SharedCertificates) notOrdered() error { return cmp.Or(c.refused.get(), c.failure.get()) }

// Expiry returns when the certificate ends, or the zero time before there is one.
func (c *SharedCertificates) Expiry() time.Time {
	if cert := c.current.Load(); cert != nil {
		return cert.Leaf.NotAfter
	}
	return time.Time{}
}

// Run loads the certificate whenever it changes, and orders it when it is due and this
// replica is the one that does, until ctx is done.
func (c *SharedCertificates) Run(ctx context.Context) error {
	elector, err := c.elector()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	loaded := make(chan struct{})
	group.Go(func() error { return c.follow(ctx, loaded) })
	group.Go(func() error {
		select {
		case <-loaded: // or the certificate that there is would be ordered again
			c.compete(ctx, elector)
		case <-ctx.Done():
		}
		return nil
	})
	return group.Wait()
}

// due reports whether the certificate is missing, wrong, or in the last third of its life.
func (c *SharedCertificates) due() bool {
	cert := c.current.Load()
	return c.service.Name() != "" && (cert == nil || !c.isGood(cert))
}

// isGood reports whether a certificate suits and need not be renewed yet.
func (c *SharedCertificates) isGood(cert *tls.Certificate) bool {
	return c.suits(cert) && time.Until(cert.Leaf.NotAfter) > lastThird(cert)
}

// suits reports whether a certificate is one that this replica would order. A replica that
// asks the staging environment is content with any: in an update that switches it off,
// old replicas must not order against new ones.
func (c *SharedCertificates) suits(cert *tls.Certificate) bool {
	return isFor(cert, c.service.Name()) && (c.config.Staging || !isStaging(cert))
}

// isStaging reports whether a certificate comes from the staging environment of Let's
// Encrypt, whose authorities all say so in their names.
func isStaging(cert *tls.Certificate) bool {
	return strings.Contains(cert.Leaf.Issuer.String(), "(STAGING)")
}

// follow loads the Secret's certificate whenever it changes. It closes loaded when it
// has done so for the first time.
func (c *SharedCertificates) follow(ctx context.Context, loaded chan<- struct{}) error {
	load := func(object any) {
		if secret, ok := object.(*corev1.Secret); ok {
			c.load(ctx, secret)
		}
	}
	informer := cache.NewSharedInformer(c.watcher(), &corev1.Secret{}, 0)
	handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: load, UpdateFunc: func(_, object any) { load(object) }})
	if err != nil {
		return fmt.Errorf("watching Secret %s/%s: %w", c.config.Namespace, c.config.Secret, err)
	}
	var running sync.WaitGroup
	running.Go(func() { informer.RunWithContext(ctx) })
	defer running.Wait()
	if cache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
		close(loaded)
	}
	<-ctx.Done()
	return nil
}

// watcher lists and watches the Secret, and no other.
func (c *SharedCertificates) watcher() cache.ListerWatcher {
	secrets := c.config.Client.CoreV1().Secrets(c.config.Namespace)
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, c.config.Secret).String()
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = only
			return secrets.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = only
			return secrets.Watch(ctx, o)
		},
	}, c.config.Client)
}

// load takes over the Secret's certificate. One that cannot be read leaves the last
// good one in use.
func (c *SharedCertificates) load(ctx context.Context, secret *corev1.Secret) {
	certPEM, keyPEM := secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey]
	if len(certPEM) == 0 {
		return // not ordered yet
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		c.config.Log.WarnContext(ctx, "the certificate cannot be read", "secret", c.config.Secret, "error", err)
		return
	}
	if old := c.current.Load(); old == nil || !old.Leaf.Equal(cert.Leaf) && !c.prefers(old, &cert) {
		c.current.Store(&cert)
		c.config.Log.InfoContext(ctx, "certificate", "domains", names(&cert), "expires", cert.Leaf.NotAfter)
	}
}

// prefers reports whether this replica stays with the certificate that it has.
func (c *SharedCertificates) prefers(own, shared *tls.Certificate) bool {
	switch {
	case !c.suits(own):
		return false
	case !c.suits(shared):
		return true // of the replicas that replace this one, in an update that renames the Service, or of those that it replaces
	case isStaging(own) && !isStaging(shared):
		return false
	}
	// Of a replica that had kept an earlier one when the Secret was lost. When the certificate
	// was issued decides, not when it ends: what the authority issues may come to live shorter.
	return c.isGood(own) && shared.Leaf.NotBefore.Before(own.Leaf.NotBefore)
}

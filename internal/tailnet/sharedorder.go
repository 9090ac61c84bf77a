// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"tailscale.com/ipn"
)

// Terms of the Lease that decides who orders the certificate: client-go's usual.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// compete takes part in elections while this replica can order the certificate. One that
// cannot, or need not, leaves the Lease to others: only approved hosts of the Service get its
// certificate, and in the update that renames a Service, only the new replicas need one.
func (c *SharedCertificates) compete(ctx context.Context, elector *leaderelection.LeaderElector) {
	for c.awaitEligible(ctx, true) == nil {
		competing, stop := context.WithCancel(ctx)
		go func() {
			_ = c.awaitEligible(competing, false)
			stop()
		}()
		elector.Run(competing) // returns when the Lease is lost, too
		stop()
	}
}

// awaitEligible returns nil when this replica can order the certificate, or cannot or need
// not, and ctx's error once ctx is done.
func (c *SharedCertificates) awaitEligible(ctx context.Context, eligible bool) error {
	return wait.PollUntilContextCancel(ctx, time.Second, true, func(ctx context.Context) (bool, error) {
		return c.eligible(ctx) == eligible, ctx.Err()
	})
}

// eligible reports whether the certificate is due and the tailnet would issue it to this
// device. It notes why not.
func (c *SharedCertificates) eligible(ctx context.Context) bool {
	if !c.due() {
		c.refused.clear()
		c.failure.clear() // whichever replica has ordered
		return false
	}
	if err := c.refusal(); err != nil {
		c.refused.set(ctx, c.config.Log, err, time.Second)
		return false
	}
	c.refused.clear()
	return true
}

// refusal returns why the tailnet would issue this device no certificate for the Service now,
// or nil.
func (c *SharedCertificates) refusal() error {
	st := c.service.node.currentStatus()
	switch {
	case st.state != ipn.Running || st.isRemoved():
		return errOffTailnet
	case len(c.domains()) == 0:
		return errHTTPSDisabled
	case !slices.Contains(c.domains(), c.service.Name()):
		return errNoHost
	}
	return nil
}

// errOffTailnet is why this device can order no certificate at all.
var errOffTailnet = errors.New("this device is not on the tailnet, and can order no certificate: the check tailnet says why")

// errNoHost is why the tailnet issues this device no certificate for the Service.
var errNoHost = errors.New("the tailnet has not approved this device as a host of the Service, and issues it no certificate: add the device's tag to autoApprovers.services of the tailnet policy, or approve it in the admin console (Services)")

// elector returns what runs issue while this replica holds the Lease.
func (c *SharedCertificates) elector() (*leaderelection.LeaderElector, error) {
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: c.config.Namespace, Name: c.config.Lease},
			Client:     c.config.Client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: c.config.Identity},
		},
		LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod, ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: c.issue,
			OnStoppedLeading: func() {}, // issue ends by itself
		},
		Name: c.config.Lease,
	})
	if err != nil {
		return nil, fmt.Errorf("the election of Lease %s/%s: %w", c.config.Namespace, c.config.Lease, err)
	}
	return elector, nil
}

// issue orders the certificate whenever it is due, until ctx is done: the Lease is lost, or
// left to others. It must not end before, or this replica would keep the Lease from them and
// order nothing.
func (c *SharedCertificates) issue(ctx context.Context) {
	c.ordering.Lock() // an earlier one may be about to end
	defer c.ordering.Unlock()
	c.config.Log.InfoContext(ctx, "this replica orders the certificate", "lease", c.config.Lease)
	if time.Since(c.next) > issueBackoff.Cap {
		c.backoff = issueBackoff // the last failure is long over
	}
	for c.awaitEligible(ctx, true) == nil && pause(ctx, time.Until(c.next)) == nil {
		err := c.renew(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			c.backoff = issueBackoff
			continue
		}
		next := pauseAfter(err, &c.backoff)
		c.next = time.Now().Add(next)
		c.failure.set(ctx, c.config.Log, explainLimit(err, next, "Secret "+c.config.Secret), next)
	}
}

// renew orders the certificate and shares it, if it is due. It errs when it is due
// after that, too.
func (c *SharedCertificates) renew(ctx context.Context) error {
	if !c.due() {
		return nil
	}
	domain := c.service.Name()
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	validity := c.validity(domain)
	got, err := c.obtain(ctx, domain, validity)
	if next := c.validity(domain); err == nil && c.due() && next > validity { // it was one that this device has kept
		got, err = c.obtain(ctx, domain, next)
	}
	if err == nil && c.due() {
		err = fmt.Errorf("the certificate for %s that was ordered is for %v, by %s, and is valid from %s to %s, so another is due",
			domain, names(got), got.Leaf.Issuer, got.Leaf.NotBefore.Format(time.RFC3339), got.Leaf.NotAfter.Format(time.RFC3339))
	}
	return err
}

// validity returns how long the next certificate for domain must be valid to be better than
// the one that there is. It is never 0: see [Certificates.get].
func (c *SharedCertificates) validity(domain string) time.Duration {
	switch cert := c.current.Load(); {
	case cert == nil || !isFor(cert, domain):
		return time.Nanosecond // any that is valid: what is left of it serves, should an order fail
	case !c.suits(cert):
		return max(time.Until(cert.Leaf.NotAfter), 0) + time.Second // any but this one
	default:
		return lastThird(cert)
	}
}

// obtain gets a certificate for domain that is valid for some time to come, from the
// device's state or by an order, and shares it.
func (c *SharedCertificates) obtain(ctx context.Context, domain string, validity time.Duration) (*tls.Certificate, error) {
	certPEM, keyPEM, err := c.order(ctx, domain, validity)
	if err != nil {
		return nil, fmt.Errorf("the certificate for %s: %w", domain, err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("the certificate for %s: %w", domain, err)
	}
	return &cert, c.share(ctx, certPEM, keyPEM)
}

// share puts a certificate into the Secret.
func (c *SharedCertificates) share(ctx context.Context, certPEM, keyPEM []byte) error {
	patch, err := json.Marshal(map[string]any{"data": map[string][]byte{corev1.TLSCertKey: certPEM, corev1.TLSPrivateKeyKey: keyPEM}})
	if err != nil {
		return fmt.Errorf("encoding the certificate: %w", err)
	}
	secret, err := c.config.Client.CoreV1().Secrets(c.config.Namespace).Patch(ctx, c.config.Secret, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "tailhelm"})
	if err != nil {
		return fmt.Errorf("sharing the certificate in Secret %s/%s: %w", c.config.Namespace, c.config.Secret, err)
	}
	c.load(ctx, secret)
	return nil
}

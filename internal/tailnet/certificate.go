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
	"slices"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"tailscale.com/client/local"
)

const (
	// issueTimeout bounds one order of a certificate, DNS propagation included.
	issueTimeout = 5 * time.Minute
	// renewalCheck is how often the tailnet is asked whether a certificate is due.
	// Certificates that live shortly are asked for more often.
	renewalCheck = time.Hour
	// domainCheck is how often the node looks whether the tailnet issues certificates
	// for another name, or at all. That costs nothing.
	domainCheck = 5 * time.Second
)

// issueBackoff is the pause between failed orders. It ends at half an hour:
// Let's Encrypt allows five failed validations of a name per hour.
var issueBackoff = wait.Backoff{Duration: 5 * time.Second, Factor: 2, Jitter: 0.1, Steps: 10, Cap: 30 * time.Minute}

// errHTTPSDisabled is why a tailnet issues no certificate at all.
var errHTTPSDisabled = errors.New("the tailnet issues no certificates: enable HTTPS in its DNS settings")

// Certificates keep the certificate for the node's name in memory. It is issued
// by the tailnet's ACME flow and renewed in the background.
type Certificates struct {
	node    *Node
	log     *slog.Logger
	domains func() []string // what the tailnet issues certificates for
	current atomic.Pointer[tls.Certificate]
	failure orderFailure
}

// Certificates returns the node's certificates. They are obtained by
// [Certificates.Run].
func (n *Node) Certificates() *Certificates {
	return &Certificates{node: n, log: n.config.Log, domains: n.server.CertDomains}
}

// GetCertificate returns the certificate, whatever name the client asks for: a
// client without SNI, or with an IP address, gets it too and can verify it against
// the name it knows. It errs before there is one.
func (c *Certificates) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if cert := c.current.Load(); cert != nil {
		return cert, nil
	}
	return nil, errors.New("no certificate yet")
}

// Ready returns nil when there is a certificate that is valid now, and otherwise
// why there is none.
func (c *Certificates) Ready(context.Context) error {
	return validNow(c.current.Load(), cmp.Or(c.failure.get(), errors.New("no certificate yet: waiting for the tailnet")))
}

// Warning returns nil, or why a certificate that is valid now could not be renewed.
func (c *Certificates) Warning(context.Context) error {
	return notRenewed(c.current.Load(), c.failure.get())
}

// Expiry returns when the certificate ends, or the zero time before there is one.
func (c *Certificates) Expiry() time.Time {
	if cert := c.current.Load(); cert != nil {
		return cert.Leaf.NotAfter
	}
	return time.Time{}
}

// Run obtains the certificate and keeps it fresh until ctx is done; it returns nil
// then.
func (c *Certificates) Run(ctx context.Context) error {
	backoff := issueBackoff
	for {
		if c.node.await(ctx, func(s status) bool { return s.name != "" }) != nil {
			return nil // ctx is done
		}
		domain, pause := c.domain(), renewalCheck
		if err := c.refresh(ctx, domain); ctx.Err() != nil {
			return nil
		} else if err != nil {
			pause = pauseAfter(err, &backoff)
			c.failure.set(ctx, c.log, explainLimit(err, pause, "the device's state"), pause)
		} else {
			c.failure.clear()
			backoff = issueBackoff
			pause = min(pause, time.Until(c.Expiry())/6)
		}
		c.sleep(ctx, max(pause, time.Second), domain)
	}
}

// sleep waits for d, or until the certificate may be another: domain is not its
// name any more, or the tailnet issues certificates now. Nothing else that happens to
// the node ends it, or an authority that fails would be asked before its time.
func (c *Certificates) sleep(ctx context.Context, d time.Duration, domain string) {
	t, tick := time.NewTimer(d), time.NewTicker(domainCheck)
	defer t.Stop()
	defer tick.Stop()
	for {
		changed := c.node.statusChanged() // before the look: none is missed between them
		if c.domain() != domain {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			return
		case <-changed:
		case <-tick.C: // the status does not tell when HTTPS is switched
		}
	}
}

// domain returns the name to get a certificate for, or "" when the tailnet issues
// none.
func (c *Certificates) domain() string {
	domains := c.domains()
	switch name := c.node.Name(); {
	case len(domains) == 0:
		return ""
	case slices.Contains(domains, name):
		return name
	}
	return domains[0]
}

// refresh gets the certificate for domain: the one in the device's state, or a new one
// if that is not valid any more or in the last third of its life.
func (c *Certificates) refresh(ctx context.Context, domain string) error {
	if domain == "" {
		return fmt.Errorf("%w, or set tls.source (--tls) to another", errHTTPSDisabled)
	}
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	if cert := c.current.Load(); cert == nil || !isFor(cert, domain) {
		// Any that is valid will do at first: what is left of it is better than nothing, should
		// the next order fail.
		if err := c.get(ctx, domain, time.Nanosecond); err != nil {
			return err
		}
	}
	return c.get(ctx, domain, lastThird(c.current.Load()))
}

// get gets a certificate for domain that is valid for some time to come, from the
// device's state or by an order. The time must not be 0: Tailscale's code would then
// renew a certificate out of sight, and tell nobody when that fails.
func (c *Certificates) get(ctx context.Context, domain string, validity time.Duration) error {
	certPEM, keyPEM, err := c.node.client.CertPairWithValidity(ctx, domain, validity)
	if err != nil {
		return fmt.Errorf("the certificate for %s: %w", domain, err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return fmt.Errorf("the certificate for %s: %w", domain, err)
	}
	if old := c.current.Load(); old == nil || !old.Leaf.Equal(cert.Leaf) {
		c.current.Store(&cert)
		c.log.InfoContext(ctx, "certificate", "domain", domain, "expires", cert.Leaf.NotAfter)
	}
	return nil
}

// pauseAfter returns how long to wait after err before the next attempt: what a
// rate limit asks for, if that is longer than the backoff's next step. Looking
// again whether HTTPS was enabled costs nothing.
func pauseAfter(err error, backoff *wait.Backoff) time.Duration {
	if errors.Is(err, errHTTPSDisabled) {
		return domainCheck
	}
	d := backoff.Step()
	if after, ok := local.RateLimitRetryAfter(err); ok {
		return max(after, d)
	}
	return d
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// validNow returns nil when cert is valid now, and otherwise says so and why.
func validNow(cert *tls.Certificate, why error) error {
	now := time.Now()
	switch {
	case cert == nil:
		return why
	case now.After(cert.Leaf.NotAfter):
		return fmt.Errorf("the certificate for %s expired at %s: %w", names(cert), cert.Leaf.NotAfter.Format(time.RFC3339), why)
	case now.Before(cert.Leaf.NotBefore):
		return fmt.Errorf("the certificate for %s is valid from %s: check the clock of this machine", names(cert), cert.Leaf.NotBefore.Format(time.RFC3339))
	}
	return nil
}

// names returns the DNS names of a certificate.
func names(cert *tls.Certificate) []string { return cert.Leaf.DNSNames }

// isFor reports whether cert is for a name.
func isFor(cert *tls.Certificate, name string) bool { return cert.Leaf.VerifyHostname(name) == nil }

// lastThird is how long the last third of cert's life is: what is left of it when it is
// to be renewed.
func lastThird(cert *tls.Certificate) time.Duration {
	return cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore) / 3
}

// notRenewed says of a certificate that it ends and why it was not renewed. It returns
// nil when there is no reason, or no certificate.
func notRenewed(cert *tls.Certificate, why error) error {
	if cert == nil || why == nil {
		return nil
	}
	return fmt.Errorf("the certificate for %s ends at %s and is not renewed: %w", names(cert), cert.Leaf.NotAfter.Format(time.RFC3339), why)
}

// tellAgain is how often a failure that lasts is logged: a renewal can fail for a month,
// and logs are kept for days.
const tellAgain = 6 * time.Hour

// orderFailure is why orders of a certificate fail.
type orderFailure struct {
	current atomic.Pointer[error]
	mu      sync.Mutex
	told    time.Time
}

// set notes why an order failed that is tried again after next, and logs what is news.
func (f *orderFailure) set(ctx context.Context, log *slog.Logger, err error, next time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if last := f.current.Swap(&err); last == nil || (*last).Error() != err.Error() || time.Since(f.told) > tellAgain {
		f.told = time.Now()
		log.WarnContext(ctx, "certificate", "error", err, "retryIn", next.String())
	}
}

// clear notes that orders do not fail.
func (f *orderFailure) clear() { f.current.Store(nil) }

// get returns why the last order failed, or nil.
func (f *orderFailure) get() error {
	if err := f.current.Load(); err != nil {
		return *err
	}
	return nil
}

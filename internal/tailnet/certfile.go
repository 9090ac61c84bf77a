// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/certwatcher"
)

// CertificateFiles are a certificate and its key in files, reloaded when they
// change, as cert-manager's do. A pair that cannot be read leaves the last good
// one in use.
type CertificateFiles struct{ watcher *certwatcher.CertWatcher }

// NewCertificateFiles reads the files, which are PEM. It errs when they hold no
// certificate with its key.
func NewCertificateFiles(certFile, keyFile string) (*CertificateFiles, error) {
	watcher, err := certwatcher.New(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", certFile, keyFile, err)
	}
	return &CertificateFiles{watcher}, nil
}

// GetCertificate returns the certificate, whatever name the client asks for.
func (f *CertificateFiles) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return f.current(), nil
}

// current returns the last pair that could be read.
func (f *CertificateFiles) current() *tls.Certificate {
	cert, _ := f.watcher.GetCertificate(nil) // it never errs, and has one since New
	return cert
}

// Ready returns nil when the certificate is valid now.
func (f *CertificateFiles) Ready(context.Context) error {
	return validNow(f.current(), errors.New("its files were not renewed"))
}

// Warning returns nil, or that a certificate that is valid now should have been renewed:
// most of the last third of its life is over.
func (f *CertificateFiles) Warning(context.Context) error {
	cert := f.current()
	if time.Until(cert.Leaf.NotAfter) > lastThird(cert)/2 {
		return nil
	}
	return notRenewed(cert, errors.New("its files are to be replaced before that"))
}

// Expiry returns when the certificate ends.
func (f *CertificateFiles) Expiry() time.Time { return f.current().Leaf.NotAfter }

// Run reloads the files when they change, until ctx is done.
func (f *CertificateFiles) Run(ctx context.Context) error { return f.watcher.Start(ctx) }

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// issuer signs the certificates of this process's own servers: DERP and the
// directory of the certificate authority. It has nothing to do with the
// certificates of devices.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// processIssuer is the one of this process. All its tailnets share it, so that
// what the process trusts has to change only once.
var processIssuer = sync.OnceValues(newIssuer)

func newIssuer() (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	template := certificateTemplate("test tailnet servers")
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &issuer{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

func certificateTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
	}
}

// serverCert is a certificate with its key, as values and in PEM.
type serverCert struct {
	pair            tls.Certificate
	certPEM, keyPEM []byte
}

// issue signs a certificate for an IP address.
func (i *issuer) issue(host string) (*serverCert, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	template := certificateTemplate(host)
	template.IPAddresses = []net.IP{net.ParseIP(host)}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, &key.PublicKey, i.key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	s := &serverCert{
		certPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		keyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}
	s.pair, err = tls.X509KeyPair(s.certPEM, s.keyPEM)
	return s, err
}

// trustIssuer makes http.DefaultTransport, by which Tailscale's ACME client
// talks to the directory, trust the process's issuer too. It does so once,
// because the transport may be in use from then on.
var trustIssuer = sync.OnceValue(func() error {
	ca, err := processIssuer()
	if err != nil {
		return err
	}
	transport, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return errors.New("http.DefaultTransport was replaced: Tailscale's ACME client would not trust the test authority")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if transport.TLSClientConfig != nil {
		config = transport.TLSClientConfig.Clone()
	}
	if config.RootCAs == nil {
		if config.RootCAs, err = x509.SystemCertPool(); err != nil {
			config.RootCAs = x509.NewCertPool() // a machine without certificates
		}
	}
	config.RootCAs = config.RootCAs.Clone()
	config.RootCAs.AddCert(ca.cert)
	transport.TLSClientConfig = config
	return nil
})

// systemBundles are where Linux distributions keep the certificates they trust.
var systemBundles = []string{
	os.Getenv("SSL_CERT_FILE"),
	"/etc/ssl/certs/ca-certificates.crt",
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/ssl/cert.pem",
}

// writeTrust writes the file for SSL_CERT_FILE: what the system trusts, the
// process's issuer and the tailnet's roots. A machine may have no bundle.
func (t *Tailnet) writeTrust() error {
	ca, err := processIssuer()
	if err != nil {
		return err
	}
	parts := [][]byte{ca.pem, t.RootsPEM()}
	for _, path := range systemBundles {
		b, err := os.ReadFile(path) //nolint:gosec // well-known files
		if err == nil {
			parts = append(parts, b)
			break
		}
	}
	bundle := bytes.Join(parts, []byte("\n"))
	if err := os.WriteFile(t.trustFile(), bundle, 0o600); err != nil { //nolint:gosec // a file in our own folder
		return fmt.Errorf("writing the trusted certificates: %w", err)
	}
	return nil
}

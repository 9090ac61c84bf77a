// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority is the cluster's certificate authority. It signs servers and clients.
type authority struct {
	dir  string // where files go
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// pem is the certificate that clients and servers trust.
	pem []byte
}

// pair is a certificate with its key, in memory and as files.
type pair struct {
	cert, key         []byte // PEM
	certFile, keyFile string
}

func newAuthority(dir string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certificate("tailhelm-test-ca")
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &authority{dir: dir, cert: cert, key: key, pem: encode("CERTIFICATE", der)}
	return a, os.WriteFile(a.file(), a.pem, 0o600)
}

// file is the path of the authority's certificate.
func (a *authority) file() string { return filepath.Join(a.dir, "ca.crt") }

// server issues a certificate for the given DNS names and for 127.0.0.1.
func (a *authority) server(name string, names ...string) (pair, error) {
	template := certificate(name)
	template.DNSNames = append([]string{"localhost"}, names...)
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), serviceIP}
	// etcd is also a client of itself, with the same certificate.
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	return a.issue(name, template)
}

// client issues a certificate that authenticates user, a member of groups. The
// files are called name.
func (a *authority) client(name, user string, groups ...string) (pair, error) {
	template := certificate(user)
	template.Subject.Organization = groups
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return a.issue(name, template)
}

func (a *authority) issue(name string, template *x509.Certificate) (pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair{}, fmt.Errorf("certificate %s: %w", name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return pair{}, fmt.Errorf("certificate %s: %w", name, err)
	}
	p := pair{
		cert:     encode("CERTIFICATE", der),
		certFile: filepath.Join(a.dir, name+".crt"),
		keyFile:  filepath.Join(a.dir, name+".key"),
	}
	if p.key, err = writeKey(p.keyFile, key); err != nil {
		return pair{}, err
	}
	return p, os.WriteFile(p.certFile, p.cert, 0o600)
}

// writeKey writes a private key to a file and returns its PEM.
func writeKey(name string, key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	b := encode("EC PRIVATE KEY", der)
	return b, os.WriteFile(name, b, 0o600)
}

func certificate(name string) *x509.Certificate {
	serial := make([]byte, 16)
	_, _ = rand.Read(serial) // Never fails: crypto/rand ends the process instead.
	serial[0] &= 0x7f        // A serial number is positive.
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		Subject:      pkix.Name{CommonName: name},
		// An hour back, for machines whose clock steps.
		NotBefore: time.Now().Add(-time.Hour),
		NotAfter:  time.Now().Add(30 * 24 * time.Hour),
		KeyUsage:  x509.KeyUsageDigitalSignature,
	}
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// authority is a CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a.cert, a.key = signed(t, template, nil)
	return a
}

// issue returns a certificate for 127.0.0.1 and clients, with its key.
func (a *authority) issue(t *testing.T, name string) (cert, key []byte) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	c, k := signed(t, template, a)
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pemOf(c), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}

// signed returns what template describes, signed by a, or by itself if that is nil.
func signed(t *testing.T, template *x509.Certificate, a *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if a == nil {
		a = &authority{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// tlsFiles are the files of a client configuration.
type tlsFiles struct{ ca, cert, key string }

func newTLSFiles(t *testing.T) tlsFiles {
	t.Helper()
	dir := t.TempDir()
	return tlsFiles{filepath.Join(dir, "ca.crt"), filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")}
}

func put(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// rotatingServer is an API server whose certificate can be replaced. It notes the names of
// clients' certificates.
type rotatingServer struct {
	*apiServer
	cert   atomic.Pointer[tls.Certificate]
	client atomic.Pointer[string]
}

func newRotatingServer(t *testing.T) *rotatingServer {
	t.Helper()
	s := &rotatingServer{apiServer: &apiServer{}}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		s.record(r, nil)
		name := ""
		for _, cert := range r.TLS.PeerCertificates {
			name += cert.Subject.CommonName
		}
		s.client.Store(&name)
	}))
	s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{*s.cert.Load()}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"h2", "http/1.1"}}, nil
	}}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// serve makes the server identify itself as a says, and ends what is open.
func (s *rotatingServer) serve(t *testing.T, a *authority) {
	t.Helper()
	cert, err := tls.X509KeyPair(a.issue(t, "server"))
	if err != nil {
		t.Fatal(err)
	}
	s.cert.Store(&cert)
	s.CloseClientConnections()
}

// rotate makes the proxy look at its files with the next request, or in an hour.
func (r *rig) rotate(next bool) {
	for _, t := range r.proxy.upstream.transports {
		t.mu.Lock()
		t.interval = time.Hour
		if next {
			t.interval = 0
		}
		t.mu.Unlock()
	}
}

// mustAnswer checks what requests and upgrades are answered.
func (r *rig) mustAnswer(t *testing.T, want int) {
	t.Helper()
	if res, body := r.get(t, alice.Addr, "/api", nil); res.StatusCode != want {
		t.Errorf("a request: %s, want %d: %s", res.Status, want, body)
	}
	upgrade := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}}
	if res, body := r.do(t, alice.Addr, false, r.request(t, http.MethodGet, podPath+"/portforward", nil, upgrade)); res.StatusCode != want {
		t.Errorf("an upgrade: %s, want %d: %s", res.Status, want, body)
	}
}

// An API server whose CA is replaced is reached as soon as the file has the new one. Files
// that make no sense change nothing.
func TestRotatedCA(t *testing.T) {
	files, old, renewed := newTLSFiles(t), newAuthority(t), newAuthority(t)
	api := newRotatingServer(t)
	api.serve(t, old)
	put(t, files.ca, pemOf(old.cert))
	r := start(t, api.apiServer, options{config: &rest.Config{Host: api.URL, BearerToken: ourToken, TLSClientConfig: rest.TLSClientConfig{CAFile: files.ca}}})
	r.rotate(true)
	r.mustAnswer(t, http.StatusOK)

	for _, nonsense := range [][]byte{{}, []byte("nonsense"), []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")} {
		put(t, files.ca, nonsense)
		api.CloseClientConnections()
		r.mustAnswer(t, http.StatusOK)
	}
	if err := os.Remove(files.ca); err != nil {
		t.Fatal(err)
	}
	r.mustAnswer(t, http.StatusOK)
	if lines := r.logs.lines(t, "TLS to the Kubernetes API server stays as it is: its files have changed and cannot be used", 8); !strings.Contains(lines[0]["error"].(string), files.ca+" is empty") {
		t.Errorf("logged as %v", lines[0])
	}

	r.rotate(false)
	api.serve(t, renewed)
	put(t, files.ca, pemOf(renewed.cert))
	r.mustAnswer(t, http.StatusServiceUnavailable)
	r.rotate(true)
	r.mustAnswer(t, http.StatusOK)
	api.serve(t, old)
	r.mustAnswer(t, http.StatusServiceUnavailable)
}

// Data in the configuration takes precedence over a file, which need not exist.
func TestCADataIsNotRotated(t *testing.T) {
	files, old := newTLSFiles(t), newAuthority(t)
	api := newRotatingServer(t)
	api.serve(t, old)
	r := start(t, api.apiServer, options{config: &rest.Config{Host: api.URL, TLSClientConfig: rest.TLSClientConfig{CAFile: files.ca, CAData: pemOf(old.cert)}}})
	r.rotate(true)
	r.mustAnswer(t, http.StatusOK)
}

// A client certificate that is replaced is used by the next request, and not only by the
// next connection: the one that is open would be kept beyond the certificate's end.
func TestRotatedClientCertificate(t *testing.T) {
	files, ca := newTLSFiles(t), newAuthority(t)
	api := newRotatingServer(t)
	api.serve(t, ca)
	certs := map[string][2][]byte{}
	for _, name := range []string{"first", "second"} {
		cert, key := ca.issue(t, name)
		certs[name] = [2][]byte{cert, key}
	}
	put(t, files.cert, certs["first"][0])
	put(t, files.key, certs["first"][1])
	r := start(t, api.apiServer, options{config: &rest.Config{Host: api.URL, TLSClientConfig: rest.TLSClientConfig{CAData: pemOf(ca.cert), CertFile: files.cert, KeyFile: files.key}}})
	mustBe := func(want string) {
		t.Helper()
		if res, body := r.get(t, alice.Addr, "/api", nil); res.StatusCode != http.StatusOK || *api.client.Load() != want {
			t.Errorf("%s %s, with the certificate %s, want %s", res.Status, body, *api.client.Load(), want)
		}
	}
	r.rotate(true)
	mustBe("first")
	put(t, files.cert, certs["second"][0]) // not yet its key
	mustBe("first")
	put(t, files.key, certs["second"][1])
	r.rotate(false)
	mustBe("first")
	r.rotate(true)
	mustBe("second")
}

// Settings that cannot be used are told at once.
func TestTLSFilesAreMissing(t *testing.T) {
	files := newTLSFiles(t)
	_, err := newUpstream(Config{Mode: ModeAuth, Upstream: &rest.Config{Host: "https://api", TLSClientConfig: rest.TLSClientConfig{CAFile: files.ca}}})
	checkError(t, err, "TLS to the Kubernetes API server https://api: open "+files.ca)
	put(t, files.ca, []byte("nonsense"))
	_, err = newUpstream(Config{Mode: ModeAuth, Upstream: &rest.Config{Host: "https://api", TLSClientConfig: rest.TLSClientConfig{CAFile: files.ca}}})
	checkError(t, err, "TLS to the Kubernetes API server https://api: unable to load root certificates")
}

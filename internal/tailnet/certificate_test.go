// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"tailscale.com/client/local"
)

// newPair returns a self-signed certificate for name and its key, as PEM.
func newPair(t *testing.T, name string, from, to time.Time) (certPEM, keyPEM string) {
	t.Helper()
	return newPairBy(t, "Test", name, from, to)
}

// newPairBy returns what an authority would, and its key.
func newPairBy(t *testing.T, authority, name string, from, to time.Time) (certPEM, keyPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: authority}, DNSNames: []string{name}, NotBefore: from, NotAfter: to}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: encoded}))
}

// servedName returns the name in the certificate that is served now.
func servedName(t *testing.T, f *CertificateFiles, sni string) string {
	t.Helper()
	cert, err := f.GetCertificate(&tls.ClientHelloInfo{ServerName: sni})
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf.DNSNames[0]
}

func TestCertificateFiles(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	store := func(name string) (certFile, keyFile string) {
		cert, key := newPair(t, name, now.Add(-time.Hour), now.Add(time.Hour))
		return write(t, dir, "tls.crt", cert), write(t, dir, "tls.key", key)
	}
	certFile, keyFile := store("one.example.com")
	f, err := NewCertificateFiles(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, sni := range []string{"", "100.64.0.1", "other.example.com", "one.example.com"} {
		if got := servedName(t, f, sni); got != "one.example.com" {
			t.Errorf("SNI %q gets the certificate for %s", sni, got)
		}
	}
	if err := f.Ready(t.Context()); err != nil {
		t.Errorf("not ready: %v", err)
	}
	if got := f.Expiry(); got.Unix() != now.Add(time.Hour).Unix() {
		t.Errorf("expiry %v", got)
	}

	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- f.Run(ctx) }()
	// The watcher tells nobody when it has begun, so the files are written until it sees.
	err = wait.PollUntilContextTimeout(ctx, 10*time.Millisecond, 30*time.Second, true, func(context.Context) (bool, error) {
		if servedName(t, f, "") == "two.example.com" {
			return true, nil
		}
		store("two.example.com")
		return servedName(t, f, "") == "two.example.com", nil
	})
	if err != nil {
		t.Errorf("the new certificate is not served: %v", err)
	}
	cancel()
	if err := <-ran; err != nil {
		t.Errorf("Run returns %v", err)
	}
}

// A pair that cannot be read leaves the last good one in use.
func TestCertificateFilesKeepTheLastGoodPair(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	cert, key := newPair(t, "good.example.com", now.Add(-time.Hour), now.Add(time.Hour))
	f, err := NewCertificateFiles(write(t, dir, "tls.crt", cert), write(t, dir, "tls.key", key))
	if err != nil {
		t.Fatal(err)
	}
	_, otherKey := newPair(t, "other.example.com", now, now.Add(time.Hour))
	for name, content := range map[string]string{"garbage": "x", "empty": "", "key of another certificate": otherKey} {
		write(t, dir, "tls.key", content)
		if err := f.watcher.ReadCertificate(); err == nil {
			t.Errorf("%s: no error", name)
		}
		if got := servedName(t, f, ""); got != "good.example.com" || f.Ready(t.Context()) != nil {
			t.Errorf("%s: the certificate for %q is served", name, got)
		}
	}
}

func TestCertificateFilesRefused(t *testing.T) {
	dir := t.TempDir()
	cert, key := newPair(t, "a.example.com", time.Now(), time.Now().Add(time.Hour))
	good, goodKey, bad := write(t, dir, "c", cert), write(t, dir, "k", key), write(t, dir, "bad", "x")
	for _, files := range [][2]string{{"/nowhere", goodKey}, {good, "/nowhere"}, {bad, goodKey}, {good, bad}} {
		if _, err := NewCertificateFiles(files[0], files[1]); err == nil || !strings.Contains(err.Error(), "certificate "+files[0]+" with key "+files[1]) {
			t.Errorf("%v: %v", files, err)
		}
	}
}

func TestValidNow(t *testing.T) {
	now, why := time.Now(), errors.New("why")
	parse := func(from, to time.Time) *tls.Certificate {
		certPEM, keyPEM := newPair(t, "kube.tail1234.ts.net", from, to)
		cert, err := tls.X509KeyPair([]byte(certPEM), []byte(keyPEM))
		if err != nil {
			t.Fatal(err)
		}
		return &cert
	}
	for name, tc := range map[string]struct {
		cert *tls.Certificate
		want string
	}{
		"valid":   {parse(now.Add(-time.Hour), now.Add(time.Hour)), ""},
		"none":    {nil, "why"},
		"expired": {parse(now.Add(-2*time.Hour), now.Add(-time.Hour)), "the certificate for [kube.tail1234.ts.net] expired at "},
		"later":   {parse(now.Add(time.Hour), now.Add(2*time.Hour)), "check the clock of this machine"},
	} {
		err := validNow(tc.cert, why)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "expired" && !errors.Is(err, why) {
			t.Errorf("%s: %v does not say why it was not renewed", name, err)
		}
	}
}

// Before there is a certificate, nothing waits for one in a handshake.
func TestCertificatesBeforeTheFirst(t *testing.T) {
	c := (&Node{config: Config{Log: quiet}}).Certificates()
	if cert, err := c.GetCertificate(nil); cert != nil || err == nil {
		t.Errorf("certificate %v, %v", cert, err)
	}
	if err := c.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "waiting for the tailnet") {
		t.Errorf("ready: %v", err)
	}
	err := errHTTPSDisabled
	c.failure.current.Store(&err)
	if got := c.Ready(t.Context()); !errors.Is(got, errHTTPSDisabled) {
		t.Errorf("ready: %v, want the reason", got)
	}
	if !c.Expiry().IsZero() {
		t.Errorf("expiry %v", c.Expiry())
	}
}

func TestPauseAfter(t *testing.T) {
	backoff := wait.Backoff{Duration: 5 * time.Second, Factor: 2, Steps: 10, Cap: time.Minute}
	broken := errors.New("broken")
	for i, want := range []time.Duration{5, 10, 20, 40, 60, 60} {
		if got := pauseAfter(broken, &backoff); got != want*time.Second {
			t.Errorf("pause %d is %v, want %v", i, got, want*time.Second)
		}
	}
	if got := pauseAfter(errHTTPSDisabled, &backoff); got != domainCheck {
		t.Errorf("without HTTPS the pause is %v, want %v", got, domainCheck)
	}
}

// A rate limit is waited for, if it lasts longer than the pause would be.
func TestPauseAfterRateLimit(t *testing.T) {
	for retryAfter, want := range map[string]time.Duration{"3600": time.Hour, "1": 5 * time.Second} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", retryAfter)
			w.WriteHeader(http.StatusTooManyRequests)
		}))
		client := &local.Client{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", server.Listener.Addr().String())
		}}
		_, _, err := client.CertPair(t.Context(), "kube.tail1234.ts.net")
		server.Close()
		backoff := wait.Backoff{Duration: 5 * time.Second, Factor: 2, Steps: 10, Cap: time.Minute}
		if got := pauseAfter(err, &backoff); got != want {
			t.Errorf("after %v the pause is %v, want %v", err, got, want)
		}
	}
}

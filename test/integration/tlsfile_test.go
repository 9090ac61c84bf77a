// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

// selfSigned is a certificate for a name, with its key, in PEM.
func selfSigned(t *testing.T, serial int64, name string, until time.Time) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: until,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// secretVolume is a folder whose files change as those of a Secret volume do: they
// are links into the folder ..data, which is a link that is replaced at once.
type secretVolume struct{ dir string }

func (v secretVolume) path(name string) string { return filepath.Join(v.dir, name) }

// set replaces all files.
func (v secretVolume) set(t *testing.T, files map[string][]byte) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	old, _ := os.Readlink(v.path("..data")) // there is none at first
	data := v.path(unique("..data"))
	check(os.Mkdir(data, 0o700))
	for name, content := range files {
		check(os.WriteFile(filepath.Join(data, name), content, 0o600))
		if old == "" {
			check(os.Symlink(filepath.Join("..data", name), v.path(name)))
		}
	}
	check(os.Symlink(filepath.Base(data), v.path("..data_tmp")))
	check(os.Rename(v.path("..data_tmp"), v.path("..data")))
	if old != "" {
		check(os.RemoveAll(v.path(old)))
	}
}

// TestTLSFile: certificates from a Secret, replaced while requests go on.
func TestTLSFile(t *testing.T) {
	t.Parallel()
	const name = "kube.example.com"
	volume := secretVolume{t.TempDir()}
	set := func(serial int64, until time.Time) {
		t.Helper()
		cert, key := selfSigned(t, serial, name, until)
		volume.set(t, map[string][]byte{"tls.crt": cert, "tls.key": key})
	}
	nextYear := time.Now().AddDate(1, 0, 0)
	set(1, nextYear)
	p := newReadyProxy(t, proxyOptions{tailnet: tailnet.New(t, tailnet.Options{NoHTTPS: true}), args: []string{
		"--tls=file", "--tls-cert-file=" + volume.path("tls.crt"), "--tls-key-file=" + volume.path("tls.key"),
	}})
	c := newUser(t, p)
	// One connection lives through all that follows.
	old, err := c.handshake(within(t, patience), insecure(name))
	if err != nil {
		t.Fatal(err)
	}
	served := func() {
		t.Helper()
		if res, err := ask(old, c.request(within(t, patience), http.MethodGet, "/version", nil)); err != nil || res.StatusCode != http.StatusOK {
			t.Errorf("the old connection: %v %v", res, err)
		}
	}
	shows := func(serial int64) func() bool {
		return func() bool { return c.certificate().SerialNumber.Int64() == serial }
	}
	if !shows(1)() {
		t.Errorf("the first certificate is not shown")
	}
	served()

	set(2, nextYear)
	eventually(t, "the second certificate", shows(2))
	served()

	// A pair that does not fit leaves the last good one.
	cert, _ := selfSigned(t, 3, name, nextYear)
	_, key := selfSigned(t, 4, name, nextYear)
	volume.set(t, map[string][]byte{"tls.crt": cert, "tls.key": key})
	if _, err := p.WaitLog(within(t, patience), func(line string) bool { return strings.Contains(line, "private key does not match") }); err != nil {
		t.Error(err)
	}
	if !shows(2)() {
		t.Error("a certificate without its key is shown")
	}
	if err := p.WaitReady(within(t, patience)); err != nil {
		t.Error(err)
	}

	set(5, nextYear)
	eventually(t, "the fifth certificate", shows(5))
	served()

	// A certificate that has ended is shown, as there is none better, and told.
	set(6, time.Now().Add(-time.Hour))
	p.readyz(t, "[-]certificate failed: ", name, "expired")
	set(7, nextYear)
	if err := p.WaitReady(within(t, patience)); err != nil {
		t.Error(err)
	}
	eventually(t, "the seventh certificate", shows(7))
	served()

	// The name is the certificate's matter, so a redirect keeps the client's.
	if code, to := c.location(http.MethodGet, name+":80", "/version"); code != http.StatusPermanentRedirect || to != "https://"+name+"/version" {
		t.Errorf("redirected with %d to %q", code, to)
	}
}

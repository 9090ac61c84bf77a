// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"
)

// TestRenewals lets Pebble give every order an old authorization, as it does
// with one in a hundred otherwise.
func TestRenewals(t *testing.T) {
	kept := pebbleEnv
	t.Cleanup(func() { pebbleEnv = kept })
	pebbleEnv = append(kept[:len(kept):len(kept)], "PEBBLE_AUTHZREUSE=100")

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const validity = time.Hour
	tn := New(t, Options{CertificateValidity: validity})
	d, err := tn.Device(ctx, "server", Identity{})
	if err != nil {
		t.Fatal(err)
	}
	serials := map[string]bool{}
	for i := range 3 {
		// More than a certificate can have: a new one is ordered each time.
		cert, _, err := d.Local().CertPairWithValidity(ctx, d.FQDN(), 2*validity)
		if err != nil {
			t.Fatalf("certificate %d: %v", i, err)
		}
		block, _ := pem.Decode(cert)
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		serials[leaf.SerialNumber.String()] = true
		if life := leaf.NotAfter.Sub(leaf.NotBefore).Round(time.Minute); life != validity {
			t.Errorf("certificate %d is good for %v, want %v", i, life, validity)
		}
	}
	if n := tn.CertificateOrders(d.FQDN()); n != 3 || len(serials) != 3 {
		t.Errorf("%d orders gave %d certificates, want 3", n, len(serials))
	}
}

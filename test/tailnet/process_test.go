// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"tailscale.com/tsnet"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

// TestMain makes the test program a node of another process's tailnet when
// TestOtherProcess runs it.
func TestMain(m *testing.M) {
	if url := os.Getenv("TAILNET_TEST_URL"); url != "" {
		if err := child(url); err != nil {
			_, _ = os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child joins the tailnet and writes its certificate to standard output.
func child(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "child-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s := &tsnet.Server{Dir: dir, Hostname: "child", ControlURL: url, UserLogf: func(string, ...any) {}}
	if _, err := s.Up(ctx); err != nil {
		return err
	}
	lc, err := s.LocalClient()
	if err != nil {
		return err
	}
	cert, _, err := lc.CertPair(ctx, s.CertDomains()[0])
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(cert)
	return errors.Join(err, s.Close())
}

func TestOtherProcess(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(testContext(t), self)
	cmd.Env = append(os.Environ(), tn.Environ()...)
	cmd.Env = append(cmd.Env, "TAILNET_TEST_URL="+tn.URL(), "TS_AUTHKEY="+tn.AuthKey(proxy))
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	verify(t, tn, out, "child."+tn.Domain())
	if err := tn.WaitOnline(testContext(t), "child", false); err != nil {
		t.Error(err)
	}
	if devices := tn.Devices(); len(devices) != 1 || devices[0].Identity.String() != "tag:proxy" {
		t.Errorf("devices = %+v, want the child with its tag", devices)
	}
}

// verify checks that tn's roots vouch for a chain of certificates in PEM.
func verify(t *testing.T, tn *tailnet.Tailnet, chain []byte, name string) {
	t.Helper()
	block, rest := pem.Decode(chain)
	if block == nil {
		t.Fatalf("no certificate in %q", chain)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	between := x509.NewCertPool()
	between.AppendCertsFromPEM(rest)
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: tn.Roots(), Intermediates: between}); err != nil {
		t.Error(err)
	}
}

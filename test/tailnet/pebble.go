// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed" // Pebble's pinned module
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/tailhelm/tailhelm/test/binary"
)

var (
	//go:embed pebble.mod
	pebbleMod []byte
	//go:embed pebble.sum
	pebbleSum []byte
)

// pebble is a running Pebble, the test authority of Let's Encrypt.
type pebble struct {
	addr     string         // of its ACME directory, HTTPS on loopback
	rootsPEM []byte         // of the certificates that it issues
	trust    *x509.CertPool // for addr

	log    *os.File
	exited chan struct{} // closed when the process has ended
	stop   context.CancelFunc
}

// pebbleEnv takes out what Pebble does to shake up its clients: delays before
// validation, refused nonces, and authorizations used again.
var pebbleEnv = []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0", "PEBBLE_AUTHZREUSE=0"}

func startPebble(ctx context.Context, t *Tailnet) (*pebble, error) {
	path, err := binary.Build(ctx, binary.Program{
		Module:  binary.Module{Name: "pebble", Mod: pebbleMod, Sum: pebbleSum},
		Package: "github.com/letsencrypt/pebble/v2/cmd/pebble",
	})
	if err != nil {
		return nil, fmt.Errorf("building Pebble: %w", err)
	}
	// Pebble cannot choose ports itself: another process may take a free one
	// before Pebble does.
	for range 3 {
		var p *pebble
		if p, err = runPebble(ctx, t, path); err == nil {
			return p, nil
		}
	}
	return nil, err
}

func runPebble(ctx context.Context, t *Tailnet, path string) (*pebble, error) {
	ca, err := processIssuer()
	if err != nil {
		return nil, err
	}
	cert, err := ca.issue("127.0.0.1")
	if err != nil {
		return nil, err
	}
	p := &pebble{trust: x509.NewCertPool(), exited: make(chan struct{})}
	p.trust.AddCert(ca.cert)
	var management string
	for _, addr := range []*string{&p.addr, &management} {
		if *addr, err = freeAddr(ctx); err != nil {
			return nil, err
		}
	}
	config, err := writePebbleConfig(t, cert, p.addr, management)
	if err != nil {
		return nil, err
	}
	if p.log, err = os.Create(filepath.Join(t.dir, "pebble.log")); err != nil {
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	p.stop = stop
	cmd := exec.CommandContext(run, path, "-config", config, "-strict", "-dnsserver", t.names.addr()) //nolint:gosec // the program was built above
	cmd.Env = append(os.Environ(), pebbleEnv...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		stop()
		return nil, errors.Join(fmt.Errorf("starting Pebble: %w", err), p.log.Close())
	}
	go func() {
		defer close(p.exited)
		_ = cmd.Wait() // it ends by being killed
	}()
	if p.rootsPEM, err = p.fetchRoots(ctx, management); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *pebble) close() error {
	p.stop()
	<-p.exited
	return p.log.Close()
}

func writePebbleConfig(t *Tailnet, cert *serverCert, addr, management string) (string, error) {
	files := map[string][]byte{"pebble.pem": cert.certPEM, "pebble.key": cert.keyPEM}
	path := func(name string) string { return filepath.Join(t.dir, name) }
	var err error
	files["pebble.json"], err = json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress":           addr,
		"managementListenAddress": management,
		"certificate":             path("pebble.pem"),
		"privateKey":              path("pebble.key"),
		"profiles": map[string]any{"default": map[string]any{
			"description": "test", "validityPeriod": int(t.opts.CertificateValidity.Seconds()),
		}},
	}})
	if err != nil {
		return "", err
	}
	for name, content := range files {
		if err := os.WriteFile(path(name), content, 0o600); err != nil {
			return "", err
		}
	}
	return path("pebble.json"), nil
}

// fetchRoots waits until Pebble serves and returns its root certificate.
func (p *pebble) fetchRoots(ctx context.Context, management string) ([]byte, error) {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.trust, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		roots, err := get(ctx, client, "https://"+management+"/roots/0")
		if err == nil {
			return roots, nil
		}
		select {
		case <-p.exited:
			log, _ := os.ReadFile(p.log.Name()) // better than nothing
			return nil, fmt.Errorf("the process of Pebble ended: %s", log)
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for Pebble: %w: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, res.Status)
	}
	return io.ReadAll(res.Body)
}

// freeAddr finds a port of loopback that nobody listens on.
func freeAddr(ctx context.Context) (string, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

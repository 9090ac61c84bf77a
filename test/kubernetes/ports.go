// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/tailhelm/tailhelm/test/kubernetes/internal/process"
)

// pollInterval is how often a server is asked whether it is ready.
const pollInterval = 50 * time.Millisecond

// errPortTaken means that another process was faster to listen on a port.
var errPortTaken = errors.New("port taken")

// freePort returns a port on 127.0.0.1 that nobody listens on at this moment.
//
// It is below the ports that kernels give to outgoing connections. One of those could
// be taken by a client while the server restarts, even by a client that dials the
// server: TCP then connects it to itself.
func freePort(ctx context.Context) (int, error) {
	var config net.ListenConfig
	for {
		port := 20000 + rand.IntN(12768) //nolint:gosec // Not a secret.
		l, err := config.Listen(ctx, "tcp4", address(port))
		if err == nil {
			return port, l.Close()
		}
		if ctx.Err() != nil {
			return 0, fmt.Errorf("find a free port: %w (%w)", context.Cause(ctx), err)
		}
	}
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// retryPorts calls start, which picks ports, again as long as they turn out taken.
func retryPorts(ctx context.Context, start func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not ready in %v", startTimeout))
	defer cancel()
	for {
		if err := start(ctx); !errors.Is(err, errPortTaken) || ctx.Err() != nil {
			return err
		}
	}
}

// freshLog removes the log of an earlier try and returns its path: that a port was taken
// is read off the log.
func freshLog(name string) (string, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return name, nil
}

// waitReady asks url until it answers 200, the process ends, or ctx ends. When it
// fails, the process is gone. The error is errPortTaken if that was the reason.
func waitReady(ctx context.Context, p *process.Process, log, url string, client *http.Client) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.Done():
			cancel(errors.New("ended while starting"))
		case <-ctx.Done():
		}
	}()
	var last error
	err := wait.PollUntilContextCancel(ctx, pollInterval, true, func(ctx context.Context) (bool, error) {
		last = get(ctx, client, url)
		return last == nil, nil
	})
	if err == nil {
		return nil
	}
	cause := context.Cause(ctx)
	if strings.Contains(process.Tail(log), "address already in use") {
		cause = fmt.Errorf("%w: %w", errPortTaken, cause)
	}
	return errors.Join(p.Failure(fmt.Errorf("%w; %s: %w", cause, url, last)), p.Kill())
}

// get asks for url and wants status 200.
func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return nil
}

// httpClient is a client that trusts the authority and shows the certificate. The
// caller closes its idle connections.
func (a *authority) httpClient(p pair) (*http.Client, error) {
	cert, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{cert},
		RootCAs:      a.pool(),
		MinVersion:   tls.VersionTLS12,
	}}}, nil
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

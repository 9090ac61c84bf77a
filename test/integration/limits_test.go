// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/tailhelm/tailhelm/test/kubernetes"
)

// secure opens a TLS connection to the proxy which speaks HTTP/1.1.
func (c *caller) secure(ctx context.Context) (*tls.Conn, error) {
	c.t.Helper()
	return c.handshake(ctx, &tls.Config{ServerName: c.proxy.host, RootCAs: c.proxy.tailnet.Roots(), MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
}

// handshake opens a TLS connection to the proxy. It is closed when the test ends.
func (c *caller) handshake(ctx context.Context, config *tls.Config) (*tls.Conn, error) {
	c.t.Helper()
	raw, err := c.Dial(ctx, "tcp", net.JoinHostPort(c.proxy.host, "443"))
	if err != nil {
		return nil, err
	}
	c.t.Cleanup(func() { _ = raw.Close() }) // the test may have done so
	conn := tls.Client(raw, config)
	return conn, conn.HandshakeContext(ctx)
}

// mustSecure is secure, which must succeed.
func (c *caller) mustSecure() *tls.Conn {
	c.t.Helper()
	conn, err := c.secure(within(c.t, patience))
	if err != nil {
		c.t.Fatal(err)
	}
	return conn
}

// ask sends a request over conn and returns the answer, with its body read.
func ask(conn net.Conn, r *http.Request) (*http.Response, error) {
	if err := r.Write(conn); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	_, err = io.Copy(io.Discard, res.Body)
	return res, err
}

// mustServe fails the test unless the proxy serves c.
func (c *caller) mustServe() {
	c.t.Helper()
	if res, body := c.get("/version"); res.StatusCode != http.StatusOK {
		c.t.Errorf("%s is not served: %s\n%s", c.Name(), res.Status, body)
	}
}

// TestLargeHeaders: they are refused before the API server is asked.
func TestLargeHeaders(t *testing.T) {
	t.Parallel()
	c, other := newUser(t, shared.proxy), newUser(t, shared.proxy)
	mark := unique("large")
	path := "/version?" + mark
	for _, kib := range []int{16, 128, 1024} {
		large := []string{"X-Large", strings.Repeat("x", kib<<10)}
		h1, err := ask(c.mustSecure(), c.request(within(t, patience), http.MethodGet, path, nil, large...))
		h2, err2 := c.HTTPClient().Do(c.request(within(t, patience), http.MethodGet, path, nil, large...))
		if err2 == nil {
			_ = h2.Body.Close()
		}
		if kib == 16 { // what clients may need
			if err != nil || err2 != nil || h1.StatusCode != http.StatusOK || h2.StatusCode != http.StatusOK {
				t.Errorf("%d KiB: HTTP/1.1 %v %v, HTTP/2 %v %v", kib, h1, err, h2, err2)
			}
			continue
		}
		if err == nil && h1.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%d KiB over HTTP/1.1: %s", kib, h1.Status)
		}
		if err2 == nil && h2.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%d KiB over HTTP/2: %s", kib, h2.Status)
		}
		other.mustServe()
		c.mustServe()
	}
	events, err := shared.cluster.AuditEvents(kubernetes.AuditFilter{Match: func(e *auditv1.Event) bool { return strings.Contains(e.RequestURI, mark) }})
	if err != nil || len(events) > 2 {
		t.Errorf("the API server was asked %d times, want twice at most: %v", len(events), err)
	}
}

// TestSlowHeaders: who does not say what they want is cut off.
func TestSlowHeaders(t *testing.T) {
	t.Parallel()
	c, other := newUser(t, shared.proxy), newUser(t, shared.proxy)
	for name, port := range map[string]string{"no handshake": "443", "no request": "80", "half a request": "80", "half a request in TLS": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var conn net.Conn
			if port == "" {
				conn = c.mustSecure()
			} else {
				raw, err := c.Dial(within(t, patience), "tcp", net.JoinHostPort(c.proxy.host, port))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = raw.Close() }()
				conn = raw
			}
			if strings.Contains(name, "half") {
				if _, err := fmt.Fprintf(conn, "GET /version HTTP/1.1\r\nHost: %s\r\nX-Slow: ", c.proxy.host); err != nil {
					t.Fatal(err)
				}
			}
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				_, _ = io.Copy(io.Discard, conn) // until the proxy ends it
			}()
			other.mustServe()
			select {
			case <-closed:
			case <-within(t, patience).Done():
				t.Error("the connection is still open")
			}
		})
	}
}

// TestConnectionLimit: one device cannot take the connections of others.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	const limit = 3
	p := newReadyProxy(t, proxyOptions{args: []string{fmt.Sprintf("--max-connections-per-peer=%d", limit)}})
	c, other := newUser(t, p), newUser(t, p)
	open := make([]*tls.Conn, limit)
	for i := range open {
		open[i] = c.mustSecure()
	}
	if _, err := c.secure(within(t, patience)); err == nil {
		t.Errorf("connection %d of one device was accepted", limit+1)
	}
	p.waitMetric(t, 1, "tailhelm_apiproxy_connections_turned_away_total")
	other.mustServe()
	for i, conn := range open { // those within the limit are as good as before
		res, err := ask(conn, c.request(within(t, patience), http.MethodGet, "/version", nil))
		if err != nil || res.StatusCode != http.StatusOK {
			t.Errorf("connection %d: %v %v", i, res, err)
		}
	}
	if err := open[0].Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a place that was given back", func() bool {
		_, err := c.secure(within(t, patience))
		return err == nil
	})
}

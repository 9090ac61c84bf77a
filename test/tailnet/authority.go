// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"
)

// authority is the tailnet's certificate authority: Pebble behind a proxy
// that counts orders and makes errors on purpose.
type authority struct {
	pebble   *pebble
	server   *http.Server
	addr     string
	rootsPEM []byte
	done     sync.WaitGroup

	mu     sync.Mutex
	orders map[string]int // by domain
}

func startAuthority(ctx context.Context, t *Tailnet) (*authority, error) {
	if err := trustIssuer(); err != nil {
		return nil, err
	}
	ca, err := processIssuer()
	if err != nil {
		return nil, err
	}
	cert, err := ca.issue(t.opts.ListenHost)
	if err != nil {
		return nil, err
	}
	p, err := startPebble(ctx, t)
	if err != nil {
		return nil, err
	}
	a := &authority{pebble: p, rootsPEM: p.rootsPEM, orders: map[string]int{}}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(t.opts.ListenHost, "0"))
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	a.addr = ln.Addr().String()
	a.server = &http.Server{
		Handler:           t.faults.wrap(a.proxy(t.opts.Logf), func(path string) string { return strings.TrimSuffix(PathACME, "/") + path }),
		ReadHeaderTimeout: 10 * time.Second,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{cert.pair}, MinVersion: tls.VersionTLS12},
		ErrorLog:          stdLog(t.opts.Logf),
	}
	a.done.Go(func() {
		if err := a.server.ServeTLS(ln, "", ""); !errors.Is(err, http.ErrServerClosed) {
			t.opts.Logf("certificate authority: %v", err)
		}
	})
	return a, nil
}

func (a *authority) close() error {
	err := errors.Join(a.server.Close(), a.pebble.close())
	a.done.Wait()
	return err
}

func (a *authority) directory() string { return "https://" + a.addr + "/dir" }

func (a *authority) proxy(logf func(string, ...any)) http.Handler {
	target := &url.URL{Scheme: "https", Host: a.pebble.addr}
	return &httputil.ReverseProxy{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.pebble.trust, MinVersion: tls.VersionTLS12}},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host // Pebble builds its URLs, and checks signed ones, by it
		},
		ModifyResponse: a.modify,
		ErrorLog:       stdLog(logf),
	}
}

// modify counts the orders made, and hides one habit of Pebble's.
func (a *authority) modify(res *http.Response) error {
	path := res.Request.URL.Path
	order := path == "/order-plz" && res.StatusCode == http.StatusCreated
	challenge := strings.HasPrefix(path, "/chalZ/") && res.StatusCode == http.StatusBadRequest
	if !order && !challenge {
		return nil
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("reading Pebble's answer: %w", err)
	}
	if err := res.Body.Close(); err != nil {
		return fmt.Errorf("closing Pebble's answer: %w", err)
	}
	if order {
		a.count(body)
	} else if bytes.Contains(body, []byte("challenge with status valid")) {
		// Pebble gives a new order an old, valid authorization now and then
		// (1 % at its lowest setting), but refuses that its challenge is
		// answered again, which Tailscale's client does. Public authorities
		// answer with the challenge as it is.
		body = validChallenge(res.Request)
		res.StatusCode, res.Status = http.StatusOK, ""
		res.Header.Set("Content-Type", "application/json")
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	res.ContentLength = int64(len(body))
	res.Header.Del("Content-Length")
	return nil
}

func validChallenge(r *http.Request) []byte {
	u := url.URL{Scheme: "https", Host: r.Host, Path: r.URL.Path}
	body, err := json.Marshal(map[string]string{"type": "dns-01", "url": u.String(), "status": "valid"})
	if err != nil {
		panic(err) // strings always encode
	}
	return body
}

func (a *authority) count(order []byte) {
	var o struct {
		Identifiers []struct {
			Value string `json:"value"`
		} `json:"identifiers"`
	}
	if err := json.Unmarshal(order, &o); err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range o.Identifiers {
		a.orders[canonicalName(id.Value)]++
	}
}

// CertificateOrders counts the orders for a certificate of this domain which
// the authority accepted. For attempts see [Tailnet.Calls] with
// [PathACMENewOrder].
func (t *Tailnet) CertificateOrders(domain string) int {
	if t.ca == nil {
		return 0
	}
	t.ca.mu.Lock()
	defer t.ca.mu.Unlock()
	return t.ca.orders[canonicalName(domain)]
}

// SetHTTPS switches certificates on or off for all devices, as the switch
// in Tailscale's admin console does. Certificates already issued stay good.
// It cannot switch on what [Options.NoHTTPS] left out.
func (t *Tailnet) SetHTTPS(enabled bool) error {
	if enabled && t.ca == nil {
		return errors.New("this tailnet was started with NoHTTPS")
	}
	t.change(func() { t.https = enabled })
	return nil
}

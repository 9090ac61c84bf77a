// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// Callers of the tests, by the loopback address from which they connect.
var (
	alice = identity.Identity{User: "alice@example.com", Groups: []string{"readers", "writers"}, Node: "laptop.tail1234.ts.net", NodeID: "n1", Addr: netip.MustParseAddr("127.0.0.2")}
	bob   = identity.Identity{User: "bob@example.com", Node: "desk.tail1234.ts.net", NodeID: "n2", Addr: netip.MustParseAddr("127.0.0.3")}
	ci    = identity.Identity{User: "ci.tail1234.ts.net", Groups: []string{"tag:ci"}, Node: "ci.tail1234.ts.net", NodeID: "n3", Tagged: true, Addr: netip.MustParseAddr("127.0.0.4")}
	// stranger is an address that the tailnet does not know.
	stranger = netip.MustParseAddr("127.0.0.9")
)

// ourToken is the proxy's own credential. It must reach the API server in auth
// mode, and nothing and nobody else ever.
const ourToken = "token-of-the-proxy"

// patience bounds every wait of a test, so that a defect is a failure and no hang.
const patience = 30 * time.Second

// fakePeers are peers that a test can change.
type fakePeers struct {
	mu      sync.Mutex
	answers map[netip.Addr]identity.Identity
	errs    map[netip.Addr]error
	changed chan struct{}
	asked   int
}

func newFakePeers(ids ...identity.Identity) *fakePeers {
	p := &fakePeers{answers: map[netip.Addr]identity.Identity{}, errs: map[netip.Addr]error{}, changed: make(chan struct{})}
	for _, id := range ids {
		p.answers[id.Addr] = id
	}
	return p
}

func (p *fakePeers) Identify(_ context.Context, addr netip.Addr) (identity.Identity, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if err := p.errs[addr]; err != nil {
		return identity.Identity{}, err
	}
	if id, ok := p.answers[addr]; ok {
		return id, nil
	}
	return identity.Identity{}, identity.ErrUnknownPeer
}

func (p *fakePeers) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// change changes the peers and tells of it.
func (p *fakePeers) change(f func(answers map[netip.Addr]identity.Identity, errs map[netip.Addr]error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p.answers, p.errs)
	close(p.changed)
	p.changed = make(chan struct{})
}

// received is a request as the API server got it.
type received struct {
	Method, URI, Host, Proto string
	Header, Trailer          http.Header
	Body                     []byte
}

// apiServer stands in for kube-apiserver. It speaks HTTP/2 and HTTP/1.1, takes
// upgrades, and records what it receives.
type apiServer struct {
	*httptest.Server
	mu       sync.Mutex
	requests []received
}

// newAPIServer starts an API server whose requests are answered by handler, or
// with an empty object.
func newAPIServer(t *testing.T, handler http.HandlerFunc) *apiServer {
	t.Helper()
	s := &apiServer{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.record(r, nil)
		if handler != nil {
			handler(w, r)
			return
		}
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		last := &s.requests[len(s.requests)-1]
		last.Body, last.Trailer = body, r.Trailer.Clone()
		s.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}")
	}))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *apiServer) record(r *http.Request, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, received{
		Method: r.Method, URI: r.RequestURI, Host: r.Host, Proto: r.Proto, Header: r.Header.Clone(), Body: body,
	})
}

// all returns what was received so far.
func (s *apiServer) all() []received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]received(nil), s.requests...)
}

// only returns the one request that was received.
func (s *apiServer) only(t *testing.T) received {
	t.Helper()
	all := s.all()
	if len(all) != 1 {
		t.Fatalf("the API server got %d requests, want 1: %+v", len(all), all)
	}
	return all[0]
}

// config returns a client configuration with the proxy's own credentials.
func (s *apiServer) config() *rest.Config {
	return &rest.Config{Host: s.URL, BearerToken: ourToken, TLSClientConfig: rest.TLSClientConfig{CAData: s.caPEM()}}
}

func (s *apiServer) caPEM() []byte { return pemOf(s.Certificate()) }

// options change what is started. The zero value is a proxy in auth mode, with
// TLS, in front of the given API server.
type options struct {
	mode         Mode
	config       *rest.Config // instead of api.config()
	plain        bool
	drainTimeout time.Duration
	connections  int
	host         string
	// refusedGroups are Config.RefusedGroups.
	refusedGroups []string
	// withdraw is ServerConfig.Withdraw.
	withdraw func(ctx context.Context, quiesce func(context.Context)) error
}

// rig is a running Proxy and Server on loopback listeners.
type rig struct {
	api      *apiServer
	peers    *fakePeers
	proxy    *Proxy
	metrics  *prometheus.Registry
	logs     *logBuffer
	roots    *x509.CertPool
	address  string // of the API
	redirect string // of the redirect, with TLS
	scheme   string
	stop     context.CancelFunc // begins a drain
	served   <-chan error
}

// start starts a proxy for api and waits for its end when the test ends.
func start(t *testing.T, api *apiServer, o options) *rig {
	t.Helper()
	if o.mode == "" {
		o.mode = ModeAuth
	}
	if o.config == nil {
		o.config = api.config()
	}
	if o.drainTimeout == 0 {
		o.drainTimeout = 10 * patience // what a test waits for must not be the end of a drain
	}
	r := &rig{api: api, peers: newFakePeers(alice, bob, ci), metrics: prometheus.NewRegistry(), logs: newLogBuffer(), scheme: "https"}
	log, metrics := slog.New(slog.NewJSONHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug})), NewMetrics(r.metrics)
	var err error
	if r.proxy, err = New(Config{Mode: o.mode, Upstream: o.config, Peers: r.peers, Name: func() string { return deviceName }, RefusedGroups: o.refusedGroups, DialRecorder: new(net.Dialer).DialContext, Log: log, Metrics: metrics}); err != nil {
		t.Fatal(err)
	}
	config := ServerConfig{
		Proxy: r.proxy, DrainTimeout: o.drainTimeout, PeerConnections: o.connections, Log: log, Metrics: metrics,
		Host: func() string { return o.host }, Withdraw: o.withdraw,
	}
	plain := listen(t)
	r.address = plain.Addr().String()
	var secure net.Listener
	if o.plain {
		r.scheme = "http"
	} else {
		secure = listen(t)
		r.address, r.redirect = secure.Addr().String(), plain.Addr().String()
		config.TLS = &tls.Config{Certificates: api.TLS.Certificates}
	}
	r.roots = x509.NewCertPool()
	r.roots.AddCert(api.Certificate())
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	r.stop = stop
	served, ended := make(chan error, 1), make(chan struct{})
	r.served = served
	go func() {
		defer close(ended)
		served <- NewServer(config).Serve(ctx, secure, plain)
	}()
	t.Cleanup(func() {
		stop()
		r.proxy.calls.endAll(errDrained) // a failed test may have left some
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("the server does not end")
		}
	})
	return r
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// dial connects as the peer at addr, with TLS where the proxy has it.
func (r *rig) dial(t *testing.T, addr netip.Addr, protocols ...string) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := dialerOf(addr).DialContext(ctx, "tcp", r.address)
	if err != nil || r.scheme == "http" {
		return conn, err
	}
	secure := tls.Client(conn, &tls.Config{RootCAs: r.roots, ServerName: "127.0.0.1", NextProtos: protocols})
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secure, nil
}

func dialerOf(addr netip.Addr) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: addr.AsSlice()}}
}

// client returns an HTTP client of the peer at addr, over HTTP/2 or HTTP/1.1. It
// follows no redirect and decodes nothing.
func (r *rig) client(t *testing.T, addr netip.Addr, http2 bool) *http.Client {
	t.Helper()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	transport := &http.Transport{
		DialContext: dialerOf(addr).DialContext, Protocols: protocols, DisableCompression: true,
		TLSClientConfig: &tls.Config{RootCAs: r.roots},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// request returns a request to the proxy that ends with the test.
func (r *rig) request(t *testing.T, method, uri string, body io.Reader, header http.Header) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, r.scheme+"://"+r.address+uri, body)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(req.Header, header)
	return req
}

// do sends a request as the peer at addr and returns the response and its body.
func (r *rig) do(t *testing.T, addr netip.Addr, http2 bool, req *http.Request) (*http.Response, string) {
	t.Helper()
	res, err := r.client(t, addr, http2).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// get is do for a GET over HTTP/2.
func (r *rig) get(t *testing.T, addr netip.Addr, uri string, header http.Header) (*http.Response, string) {
	t.Helper()
	return r.do(t, addr, r.scheme == "https", r.request(t, http.MethodGet, uri, nil, header))
}

// logBuffer keeps log lines and lets tests wait for them.
type logBuffer struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func newLogBuffer() *logBuffer { return &logBuffer{changed: make(chan struct{})} }

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.changed)
	b.changed = make(chan struct{})
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// lines waits until there are n lines with message, and returns them decoded.
func (b *logBuffer) lines(t *testing.T, message string, n int) []map[string]any {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		b.mu.Lock()
		text, changed := b.text.String(), b.changed
		b.mu.Unlock()
		var found []map[string]any
		for line := range strings.Lines(text) {
			var fields map[string]any
			if err := json.Unmarshal([]byte(line), &fields); err != nil {
				t.Fatalf("log line %q: %v", line, err)
			}
			if fields["msg"] == message {
				found = append(found, fields)
			}
		}
		if len(found) >= n {
			return found
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("no %d lines %q in the log:\n%s", n, message, text)
		}
	}
}

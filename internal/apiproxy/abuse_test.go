// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	authenticationv1 "k8s.io/api/authentication/v1"
	clienttesting "k8s.io/client-go/testing"
	"tailscale.com/tailcfg"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// stall sends a request on an HTTP/2 connection of a client that lives, answers
// pings and reads no body: its flow control window is 0.
func (r *rig) stall(t *testing.T, path string) net.Conn {
	t.Helper()
	conn, err := r.dial(t, alice.Addr, "h2")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", deviceName}, {":path", path}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}),
		framer.WriteSettingsAck(),
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	go func() {
		for {
			frame, err := framer.ReadFrame()
			if err != nil {
				return
			}
			if ping, ok := frame.(*http2.PingFrame); ok && !ping.IsAck() {
				_ = framer.WritePing(true, ping.Data)
			}
		}
	}()
	return conn
}

// A client that does not read holds neither a watch beyond its revocation nor a
// drain to its timeout.
func TestStalledClient(t *testing.T) {
	chunk := bytes.Repeat([]byte("x"), 64<<10)
	endless := func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
	open := func(r *rig, n int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d calls are open", n), func() bool { return r.proxy.calls.count(KindWatch, KindREST) == n })
	}
	t.Run("revoked", func(t *testing.T) {
		r := start(t, newAPIServer(t, endless), options{})
		r.stall(t, "/api/v1/pods?watch=1")
		open(r, 1)
		r.peers.change(func(ids map[netip.Addr]identity.Identity, _ map[netip.Addr]error) { delete(ids, alice.Addr) })
		open(r, 0)
	})
	t.Run("drained", func(t *testing.T) {
		r := start(t, newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") }), options{drainTimeout: patience})
		r.stall(t, "/api/v1/pods")
		eventually(t, "the answer is logged", func() bool { return strings.Contains(r.logs.String(), `"msg":"request"`) })
		r.stop()
		if err := receive(t, r.served, "the end of the drain"); err != nil {
			t.Error(err)
		}
		if strings.Contains(r.logs.String(), "the drain timeout is over") {
			t.Error("a client that does not read held the drain to its timeout")
		}
	})
}

// What the API server may send ahead of a client that does not read is bounded.
func TestWindowOfAnswers(t *testing.T) {
	server := newH2Server(t, true, func(int, *http2.Framer, uint32) bool { return false })
	r := start(t, newAPIServer(t, nil), options{config: server.config})
	r.get(t, alice.Addr, "/api/v1/pods", nil)
	if window := server.window.Load(); window != streamBuffer {
		t.Errorf("%d bytes of an answer may be under way, want %d", window, streamBuffer)
	}
}

// One device cannot hold more than its share.
func TestCallsPerDevice(t *testing.T) {
	s := newCalls()
	device := func(id tailcfg.StableNodeID) *call { return &call{caller: identity.Identity{NodeID: id}} }
	var dones []func()
	for range maxCallsPerDevice {
		done, f := s.add(device("greedy"))
		if f != nil {
			t.Fatalf("call %d is refused", len(dones)+1)
		}
		dones = append(dones, done)
	}
	if _, f := s.add(device("greedy")); f == nil {
		t.Error("a device has more calls than it may have")
	}
	if _, f := s.add(device("other")); f != nil {
		t.Error("another device is refused")
	}
	dones[0]()
	if _, f := s.add(device("greedy")); f != nil {
		t.Error("the place of a call that has ended is not free")
	}
}

// One device cannot have all the places of a recorder, and its other requests do not count.
func TestRecordedSessionsPerDevice(t *testing.T) {
	s := newCalls()
	session := func(id tailcfg.StableNodeID) *call {
		return &call{caller: identity.Identity{NodeID: id}, toRecord: true}
	}
	var dones []func()
	for range maxRecordedPerDevice {
		done, f := s.add(session("greedy"))
		if f != nil {
			t.Fatalf("session %d is refused", len(dones)+1)
		}
		dones = append(dones, done)
	}
	if _, f := s.add(session("greedy")); f == nil || !strings.Contains(f.message, "64 recorded sessions open") {
		t.Errorf("one more session: %v", f)
	}
	for what, c := range map[string]*call{"another device": session("other"), "another request": {caller: identity.Identity{NodeID: "greedy"}}} {
		if _, f := s.add(c); f != nil {
			t.Errorf("%s is refused: %v", what, f)
		}
	}
	dones[0]()
	if _, f := s.add(session("greedy")); f != nil {
		t.Error("the place of a session that has ended is not free")
	}
}

// What runs in a pod, or is behind a Service or node, cannot make the proxy hold a long
// header for each request, be it in answer to a request or to an upgrade, and it cannot end
// what others have open.
func TestHeadersOfAnswersAreBounded(t *testing.T) {
	ends := make(chan struct{})
	api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/proxy/") {
			_, _ = io.WriteString(w, "{}")
			_ = http.NewResponseController(w).Flush()
			<-ends
			return
		}
		w.Header().Set("X-Long", strings.Repeat("a", maxAnswerHeader))
		for i := range 2 * maxAnswerHeader >> 10 {
			w.Header().Set(fmt.Sprint("X-Header-", i), strings.Repeat("a", 1<<10))
		}
	})
	r := start(t, api, options{})
	watch, err := r.client(t, bob.Addr, true).Do(r.request(t, http.MethodGet, "/api/v1/pods?watch=1", nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watch.Body.Close() }()
	for _, of := range []string{"namespaces/a/pods/b", "namespaces/a/services/b", "nodes/n"} {
		for name, header := range map[string]http.Header{"request": nil, "upgrade": {"Connection": {"Upgrade"}, "Upgrade": {"websocket"}}} {
			res, body := r.do(t, alice.Addr, false, r.request(t, http.MethodGet, "/api/v1/"+of+"/proxy/", nil, header))
			if res.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("%s, %s: %s %.200s", of, name, res.Status, body)
			}
		}
	}
	close(ends)
	if body, err := io.ReadAll(watch.Body); err != nil || string(body) != "{}" {
		t.Errorf("another caller's watch: %q, %v", body, err)
	}
}

// Nobody leaves the path below which the API server is.
func TestBasePathCannotBeLeft(t *testing.T) {
	api := newAPIServer(t, nil)
	config := api.config()
	config.Host += "/k8s/clusters/c-1"
	r := start(t, api, options{config: config})
	for _, path := range []string{"/../v3/users", "/api/../../v3", "/%2e%2e/v3/users", "/..%2fv3/users", "/api/v1/.", "/.."} {
		if code := r.raw(t, "GET "+path+" HTTP/1.1"); code != http.StatusBadRequest {
			t.Errorf("%s: %d", path, code)
		}
	}
	if got := api.all(); len(got) != 0 {
		t.Errorf("the API server was asked for %q", got[0].URI)
	}
	if code := r.raw(t, "GET /api/v1/namespaces/a..b/configmaps/...c HTTP/1.1"); code != http.StatusOK {
		t.Errorf("names with dots: %d", code)
	}
}

// A page that a pod serves is no page of the API's origin to a browser.
func TestPagesAreIsolated(t *testing.T) {
	api := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'self'")
	})
	for _, tc := range []struct {
		name    string
		mode    Mode
		header  http.Header
		sandbox bool
	}{
		{name: "browser", mode: ModeAuth, sandbox: true},
		{name: "kubeconfig", mode: ModeAuth, header: http.Header{"Authorization": {"Bearer unused"}}},
		{name: "noauth", mode: ModeNoAuth},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := start(t, api, options{mode: tc.mode})
			res, _ := r.get(t, alice.Addr, "/api/v1/namespaces/evil/pods/evil/proxy/", tc.header)
			policies := res.Header.Values("Content-Security-Policy")
			if sandbox := len(policies) == 2 && policies[1] == "sandbox"; sandbox != tc.sandbox || policies[0] != "default-src 'self'" {
				t.Errorf("policies %q", policies)
			}
		})
	}
}

// What clients choose does not fill the log.
func TestLogLinesAreBounded(t *testing.T) {
	r := start(t, newAPIServer(t, nil), options{})
	r.get(t, alice.Addr, "/api/v1/namespaces/"+strings.Repeat("n", 9000)+"/pods/"+strings.Repeat("p", 9000), http.Header{"User-Agent": {strings.Repeat("\xff", 30_000)}})
	eventually(t, "the request is logged", func() bool { return strings.Contains(r.logs.String(), `"msg":"request"`) })
	for line := range strings.Lines(r.logs.String()) {
		if len(line) > 4096 {
			t.Errorf("a line of %d bytes: %s...", len(line), line[:200])
		}
	}
}

// An answer 401 that a caller provokes does not cost everybody a new token.
func TestTokensAreKept(t *testing.T) {
	api := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) })
	var minted atomic.Int64
	client := tokenRequests(func(a clienttesting.CreateAction) (*authenticationv1.TokenRequest, error) {
		minted.Add(1)
		return tokenAnswer(a.GetObject().(*authenticationv1.TokenRequest), "t"), nil
	})
	r := start(t, api, options{config: ImpersonatorConfig(api.config(), client, "ns", "sa")})
	for range 10 {
		r.get(t, alice.Addr, "/api/v1/namespaces/a/pods/b/proxy/", nil)
	}
	if n := minted.Load(); n > 2 {
		t.Errorf("10 answers 401 cost %d tokens", n)
	}
}

// kubectl's first question gets an answer that kubectl prints.
func TestDiscoveryIsRefusedInPlainText(t *testing.T) {
	r := start(t, newAPIServer(t, nil), options{})
	const accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
	res, body := r.get(t, alice.Addr, "/api", http.Header{"Accept": {accept}, "Impersonate-User": {"boss"}})
	if res.StatusCode != http.StatusForbidden || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/plain") || !strings.HasPrefix(body, "This proxy impersonates you") {
		t.Errorf("%d %s %q", res.StatusCode, res.Header.Get("Content-Type"), body)
	}
}

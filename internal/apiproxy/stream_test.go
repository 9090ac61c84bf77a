// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// echo answers an upgrade with 101 and sends back every byte; when the client
// ends its direction, it says goodbye and ends its own.
func echo(w http.ResponseWriter, r *http.Request) { echoWith(w, r, "") }

// echoWith is echo with further header lines in the answer.
func echoWith(w http.ResponseWriter, r *http.Request, lines string) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s\r\n", r.Header.Get("Upgrade"), lines)
	if _, err := io.Copy(conn, buffered); err == nil {
		_, _ = io.WriteString(conn, "goodbye")
	}
}

// stream is an upgraded connection of a client.
type stream struct {
	net.Conn
	read *bufio.Reader
}

// stream opens an upgraded connection as the peer at addr. It fails the test when
// the proxy does not switch protocols.
func (r *rig) stream(t *testing.T, addr netip.Addr, method, protocol string, lines ...string) *stream {
	t.Helper()
	s, status := r.upgrade(t, addr, method, protocol, lines...)
	if status != http.StatusSwitchingProtocols {
		t.Fatalf("the upgrade is answered %d", status)
	}
	return s
}

// upgrade asks for an upgrade and returns the status code of the answer.
func (r *rig) upgrade(t *testing.T, addr netip.Addr, method, protocol string, lines ...string) (*stream, int) {
	t.Helper()
	conn, err := r.dial(t, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_, _ = fmt.Fprintf(conn, "%s /api/v1/namespaces/default/pods/p/exec?command=sh HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s\r\n",
		method, deviceName, protocol, joinLines(lines))
	s := &stream{Conn: conn, read: bufio.NewReader(conn)}
	res, err := http.ReadResponse(s.read, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		_ = res.Body.Close()
	}
	return s, res.StatusCode
}

// ping sends something and reads it back.
func (s *stream) ping(t *testing.T) {
	t.Helper()
	const message = "ping\x00"
	if _, err := io.WriteString(s, message); err != nil {
		t.Fatalf("writing to the stream: %v", err)
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(s.read, got); err != nil || string(got) != message {
		t.Fatalf("the stream sends back %q, %v", got, err)
	}
}

// ended waits until the proxy has closed the stream, with EOF or a reset.
func (s *stream) ended(t *testing.T) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, s.read)
	}()
	receive(t, done, "the end of the stream")
}

func TestStreams(t *testing.T) {
	for _, plain := range []bool{false, true} {
		for _, tc := range []struct{ method, protocol string }{
			{http.MethodPost, "SPDY/3.1"}, {http.MethodGet, "websocket"}, {http.MethodGet, "WebSocket"},
		} {
			t.Run(fmt.Sprintf("%s, plain: %v", tc.protocol, plain), func(t *testing.T) {
				r := start(t, newAPIServer(t, echo), options{plain: plain})
				s := r.stream(t, alice.Addr, tc.method, tc.protocol)
				s.ping(t)
				bulk(t, s)
				_ = s.Close()
				line := r.logs.lines(t, "request", 1)[0]
				if line["kind"] != string(KindStream) || line["code"] != float64(http.StatusSwitchingProtocols) || line["subresource"] != "exec" {
					t.Errorf("logged as %v", line)
				}
				if got := line["bytesReceived"].(float64); got < 1<<20 {
					t.Errorf("%v bytes of the client were counted", got)
				}
			})
		}
	}
}

// bulk sends a megabyte and reads it back at the same time.
func bulk(t *testing.T, s *stream) {
	t.Helper()
	const size = 1 << 20
	sent := make(chan error, 1)
	go func() {
		_, err := s.Write(make([]byte, size))
		sent <- err
	}()
	if n, err := io.CopyN(io.Discard, s.read, size); err != nil {
		t.Errorf("%d bytes came back: %v", n, err)
	}
	if err := receive(t, sent, "the end of writing"); err != nil {
		t.Error(err)
	}
}

// A client that has sent everything gets the rest of the answer.
func TestStreamHalfClosedByClient(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain: %v", plain), func(t *testing.T) {
			r := start(t, newAPIServer(t, echo), options{plain: plain})
			s := r.stream(t, alice.Addr, http.MethodGet, "websocket")
			s.ping(t)
			if err := s.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(s.read)
			if string(rest) != "goodbye" || err != nil {
				t.Errorf("after the client's end comes %q, %v", rest, err)
			}
		})
	}
}

// A client learns that the API server has ended a stream, though it goes on itself.
func TestStreamEndedByAPIServer(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain: %v", plain), func(t *testing.T) {
			api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					return
				}
				_, _ = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
				_ = conn.Close()
			})
			r := start(t, api, options{plain: plain})
			r.stream(t, alice.Addr, http.MethodGet, "websocket").ended(t)
		})
	}
}

// An API server that refuses an upgrade is heard.
func TestUpgradeRefusedByAPIServer(t *testing.T) {
	api := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) })
	r := start(t, api, options{})
	if _, status := r.upgrade(t, alice.Addr, http.MethodPost, "SPDY/3.1"); status != http.StatusForbidden {
		t.Errorf("status %d, want 403", status)
	}
}

// A connection that was one caller's upgrade, though refused, is no other caller's: what
// the API server may still say on it belongs to the first.
func TestConnectionsOfUpgradesAreNotShared(t *testing.T) {
	var mu sync.Mutex
	connections := map[string]int{}
	api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		connections[r.RemoteAddr]++
		http.Error(w, "no", http.StatusForbidden)
	})
	r := start(t, api, options{})
	for n, caller := range []identity.Identity{alice, bob, alice} {
		r.upgrade(t, caller.Addr, http.MethodGet, "websocket")
		r.logs.lines(t, "request", n+1) // it is over: a connection for reuse would be free now
	}
	mu.Lock()
	defer mu.Unlock()
	if len(connections) != 3 {
		t.Errorf("three upgrades came over %d connections: %v", len(connections), connections)
	}
}

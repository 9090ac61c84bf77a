// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// checkResult checks what is logged and counted of the only session, and whether the
// recorder takes its recording for whole.
func (r *rig) checkResult(t *testing.T, s *recorder, want string) map[string]any {
	t.Helper()
	line := r.logs.lines(t, "request", 1)[0]
	if line["recording"] != want || line["recorder"] != s.addr.String() {
		t.Errorf("logged as %v, want the recording %s", line, want)
	}
	for _, result := range []string{recordedWhole, recordedPartly, recordedRefused, recordedNot} {
		counted := 0.0
		if result == want {
			counted = 1
		}
		if got := metric(t, r.metrics, recordings, "result", result); got != counted {
			t.Errorf("%v recordings are counted as %s", got, result)
		}
	}
	eventually(t, "the end of the recording", func() bool { return s.wasWhole() == (want != recordedPartly) })
	return line
}

// A session that the API server refuses, or that does not get there, leaves who asked for
// what, and what came of it.
func TestRefusedSession(t *testing.T) {
	for name, tc := range map[string]struct {
		down   bool
		status int
		note   string
	}{
		"refused": {false, http.StatusForbidden, "answered 403 Forbidden"}, "not sent": {true, http.StatusServiceUnavailable, "was not sent"},
	} {
		t.Run(name, func(t *testing.T) {
			api := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) })
			s := newRecorder(t, false)
			r := start(t, api, options{})
			r.grant(true, s.addr)
			if tc.down {
				api.Close()
			}
			if _, status := r.upgrade(t, alice.Addr, http.MethodPost, "SPDY/3.1"); status != tc.status {
				t.Errorf("status %d, want %d", status, tc.status)
			}
			r.checkResult(t, s, recordedRefused)
			if text := s.text(); !strings.Contains(text, `"command":"sh"`) || !strings.Contains(text, `,"m","`) || !strings.Contains(text, tc.note) {
				t.Errorf("recorded: %q", text)
			}
		})
	}
}

// Over WebSocket the API server begins the command with the request. So the recorder has
// who asked for what before, and keeps it as something of which the rest is missing, when
// the client or the API server leaves before there is an answer, or the answer is no way
// to talk.
func TestSessionWithoutAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		query, says string
		clientGone  bool
	}{
		"the client leaves": {"command=evil", "", true}, "the client leaves, with a terminal": {"command=evil&tty=true&stdin=true&stdout=true", "", true},
		"the API server leaves":  {"command=evil", "HTTP/1.1 ", false},
		"an answer of one way":   {"command=evil", "HTTP/1.1 101 Switching Protocols\r\nConnection: close\r\nUpgrade: websocket\r\n\r\n", false},
		"another protocol":       {"command=evil", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n", false},
		"an unknown subprotocol": {"command=evil", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: base64.channel.k8s.io\r\n\r\n", false},
	} {
		for _, enforced := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, enforced: %v", name, enforced), func(t *testing.T) {
				s := newRecorder(t, false)
				began, release := make(chan string, 1), make(chan struct{})
				api := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
					began <- s.text()
					<-release
					if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
						_, _ = io.WriteString(conn, tc.says)
						_ = conn.Close()
					}
				})
				r := start(t, api, options{})
				r.grant(enforced, s.addr)
				conn, err := r.dial(t, alice.Addr)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
				_, _ = fmt.Fprintf(conn, "GET %s/exec?%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n", podPath, tc.query, deviceName)
				if had := receive(t, began, "the request at the API server"); enforced && (!strings.Contains(had, `"command":"evil"`) || !strings.HasSuffix(had, "\n")) {
					t.Errorf("when the API server began, the recorder had %q", had)
				}
				if tc.clientGone {
					_ = conn.Close()
					defer close(release)
				} else {
					close(release)
				}
				if line := r.checkResult(t, s, recordedPartly); line["recordingError"] == nil || tc.clientGone && line["code"] != float64(statusClientClosed) {
					t.Errorf("logged as %v", line)
				}
				if text := s.text(); !strings.Contains(text, `"command":"evil"`) {
					t.Errorf("the recorder has %q", text)
				}
			})
		}
	}
}

// A command that recorders could not take is refused before it runs, enforced or not.
func TestLongCommand(t *testing.T) {
	for _, enforced := range []bool{true, false} {
		r := start(t, newAPIServer(t, speak), options{})
		r.grant(enforced, newRecorder(t, false).addr)
		header := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Protocol": {"v4.channel.k8s.io"}}
		res, body := r.do(t, alice.Addr, false, r.request(t, http.MethodGet, podPath+"/exec?command="+strings.Repeat("%01", 20_000), nil, header))
		if status := statusOf(t, res, body); status.Code != http.StatusBadRequest || !strings.Contains(status.Message, "in a recording, which has room for 65536") {
			t.Errorf("enforced: %v: the client is told %+v", enforced, status)
		}
		if n := len(r.api.all()); n > 0 {
			t.Errorf("enforced: %v: %d requests reached the API server", enforced, n)
		}
	}
}

// A client that leaves while a recorder is asked has left, and a drain is a drain.
func TestLeavingWhileRecorderIsAsked(t *testing.T) {
	for name, tc := range map[string]struct {
		leave func(*rig, net.Conn)
		code  float64
		label any
	}{
		"the client leaves": {func(_ *rig, conn net.Conn) { _ = conn.Close() }, statusClientClosed, nil},
		"a drain":           {func(r *rig, _ net.Conn) { r.proxy.calls.endAll(errDrained) }, http.StatusServiceUnavailable, reasonDraining},
		"a revocation":      {func(r *rig, _ net.Conn) { r.proxy.calls.endAll(refuseIdentity(identity.ErrUnknownPeer)) }, http.StatusUnauthorized, reasonUnknownPeer},
	} {
		t.Run(name, func(t *testing.T) {
			s := newRecorder(t, false)
			s.hold = make(chan struct{})
			defer close(s.hold)
			r := start(t, newAPIServer(t, speak), options{})
			r.grant(true, s.addr)
			conn, err := r.dial(t, alice.Addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_, _ = fmt.Fprintf(conn, "GET %s/exec?command=sh HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", podPath, deviceName)
			eventually(t, "the recorder is asked", func() bool { return r.proxy.calls.count(KindStream) == 1 })
			tc.leave(r, conn)
			line := r.logs.lines(t, "request", 1)[0]
			if line["code"] != tc.code || line["refused"] != tc.label || line["recording"] != nil {
				t.Errorf("logged as %v", line)
			}
			if n := len(r.api.all()); n > 0 {
				t.Errorf("%d requests reached the API server", n)
			}
		})
	}
}

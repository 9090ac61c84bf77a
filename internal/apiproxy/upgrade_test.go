// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/moby/spdystream/spdy"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// container is a container of a runtime that notes commands. It speaks by the library with which
// real ones do.
type container struct{ ran chan []string }

func (r container) ExecInContainer(_ context.Context, _, _, _ string, command []string, _ io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize, _ time.Duration) error {
	r.ran <- command
	_, err := io.WriteString(out, "secret output")
	return err
}

// newRuntime starts a runtime, and an API server that hands requests on to it, bodies
// included, as kube-apiserver and kubelets do.
func newRuntime(t *testing.T) (*apiServer, container) {
	t.Helper()
	r := container{make(chan []string, 1)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		remotecommand.ServeExec(w, req, r, "p", "u", "c", req.URL.Query()["command"], &remotecommand.Options{Stdout: true}, time.Minute, patience, []string{"v4.channel.k8s.io"})
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	return newAPIServer(t, func(w http.ResponseWriter, req *http.Request) {
		to, err := new(net.Dialer).DialContext(req.Context(), "tcp", server.Listener.Addr().String())
		if err != nil {
			panic(err)
		}
		defer func() { _ = to.Close() }()
		_ = req.Write(to) // with its body; an error shows in the answer
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer func() { _ = conn.Close() }()
		go func() { _, _ = io.Copy(to, buffered) }()
		_, _ = io.Copy(conn, to)
	}), r
}

// sessionFrames are what a client of SPDY says to begin a session, filled up to n bytes:
// the runtime gets it when some buffers on the way are full.
func sessionFrames(t *testing.T, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	f, err := spdy.NewFramer(&b, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, kind := range []string{"error", "stdout"} {
		if err := f.WriteFrame(&spdy.SynStreamFrame{StreamId: spdy.StreamId(2*i + 1), Headers: http.Header{"Streamtype": {kind}}}); err != nil {
			t.Fatal(err)
		}
	}
	fill := max(0, n-b.Len()-8)
	frames := binary.BigEndian.AppendUint32(b.Bytes(), 99)       // data of a stream that there is not
	frames = binary.BigEndian.AppendUint32(frames, uint32(fill)) //nolint:gosec // less than a frame may have
	return append(frames, make([]byte, fill)...)
}

// exec sends a request for a session, byte by byte, and what follows it.
func exec(t *testing.T, conn net.Conn, length string, body []byte) *http.Response {
	t.Helper()
	_, _ = fmt.Fprintf(conn, "POST %s/exec?command=evil&stdout=true HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n%s\r\n", podPath, deviceName, length)
	go func() { _, _ = conn.Write(body) }() // what is refused may not be read
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// A session cannot be in the body of the request for it, where nobody records it: no
// upgrade has a body. What real clients send is none.
func TestUpgradeWithBody(t *testing.T) {
	const large = 300_000
	frames := sessionFrames(t, large)
	chunked := append(fmt.Appendf(nil, "%x\r\n", large), append(frames, "\r\n0\r\n\r\n"...)...)
	for name, tc := range map[string]struct {
		length string
		body   []byte
		status int
	}{
		"a body": {fmt.Sprintf("Content-Length: %d\r\n", large), frames, http.StatusBadRequest}, "chunks": {"Transfer-Encoding: chunked\r\n", chunked, http.StatusBadRequest},
		"one byte": {"Content-Length: 1\r\n", []byte("x"), http.StatusBadRequest}, "expected": {"Content-Length: 1\r\nExpect: 100-continue\r\n", nil, http.StatusBadRequest},
		"nothing": {"Content-Length: 0\r\n", sessionFrames(t, 0), http.StatusSwitchingProtocols}, "no length": {"", sessionFrames(t, 0), http.StatusSwitchingProtocols},
	} {
		for _, recorded := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, recorded: %v", name, recorded), func(t *testing.T) {
				api, _ := newRuntime(t)
				r, s := start(t, api, options{}), newRecorder(t, false)
				if recorded {
					r.grant(true, s.addr)
				}
				conn, err := r.dial(t, alice.Addr)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
				res := exec(t, conn, tc.length, tc.body)
				if res.StatusCode != tc.status {
					t.Errorf("status %s, want %d", res.Status, tc.status)
				}
				if tc.status == http.StatusSwitchingProtocols {
					return
				}
				body, err := io.ReadAll(res.Body)
				if err != nil {
					t.Fatal(err)
				}
				r.checkRefusal(t, res, string(body), http.StatusBadRequest, "BadRequest", reasonBadRequest, "cannot have a body")
				if n := len(api.all()); n > 0 || s.text() != "" {
					t.Errorf("%d requests reached the API server, recorded %q", n, s.text())
				}
			})
		}
	}
}

// The test before is about something: without the proxy such a body runs a command.
func TestBodyIsSession(t *testing.T) {
	api, c := newRuntime(t)
	dialer := &tls.Dialer{Config: api.Client().Transport.(*http.Transport).TLSClientConfig}
	conn, err := dialer.DialContext(t.Context(), "tcp", api.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	frames := sessionFrames(t, 300_000)
	_ = exec(t, conn, fmt.Sprintf("Content-Length: %d\r\n", len(frames)), frames).Body.Close()
	if command := receive(t, c.ran, "the command"); len(command) != 1 || command[0] != "evil" {
		t.Errorf("the command is %q", command)
	}
}

// A caller who must be recorded cannot give a server behind the API server a token of its
// own; a token that is for the API server itself is none of that.
func TestInnerToken(t *testing.T) {
	const behind = "/api/v1/namespaces/default/services/https:kubernetes:443/proxy" + podPath + "/exec?command=evil"
	bearer := "Sec-WebSocket-Protocol: v4.channel.k8s.io, " + bearerSubprotocol + "aW5uZXI"
	for name, tc := range map[string]struct {
		path, authorization, subprotocols string
		enforced                          bool
		status                            int
	}{
		"two tokens":                {behind, "Authorization: Bearer outer", bearer, true, http.StatusForbidden},
		"two tokens, not enforced":  {behind, "Authorization: Bearer outer", bearer, false, http.StatusSwitchingProtocols},
		"in capitals":               {behind, "authorization: basic outer", strings.ToUpper(bearer), true, http.StatusForbidden},
		"in another list":           {behind, "Authorization: Bearer outer", "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n" + bearer, true, http.StatusForbidden},
		"to a pod":                  {podPath + ":10250/proxy/exec/ns/p/c", "Authorization: Bearer outer", bearer, true, http.StatusForbidden},
		"a token of the API server": {"/api/v1/pods?watch=1", "X: y", bearer, true, http.StatusSwitchingProtocols},
		"the usual":                 {behind, "Authorization: Bearer outer", "Sec-WebSocket-Protocol: v4.channel.k8s.io", true, http.StatusSwitchingProtocols},
		"a session":                 {podPath + "/exec?command=sh", "Authorization: Bearer outer", bearer, true, http.StatusSwitchingProtocols},
	} {
		t.Run(name, func(t *testing.T) {
			api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				r.Header.Set("Sec-Websocket-Protocol", "v4.channel.k8s.io") // its choice
				speak(w, r)
			})
			r := start(t, api, options{mode: ModeNoAuth})
			r.grant(tc.enforced, newRecorder(t, false).addr)
			if status := r.raw(t, "GET "+tc.path+" HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket", tc.authorization, tc.subprotocols); status != tc.status {
				t.Errorf("status %d, want %d", status, tc.status)
			}
			if reached := len(api.all()) > 0; reached != (tc.status == http.StatusSwitchingProtocols) {
				t.Errorf("it reached the API server: %v", reached)
			}
		})
	}
}

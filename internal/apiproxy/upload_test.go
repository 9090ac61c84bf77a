// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// readingServer is an API server that reads bodies and tells when one has begun.
func readingServer(t *testing.T, http2 bool) (*apiServer, <-chan struct{}) {
	t.Helper()
	begun := make(chan struct{}, 8)
	s := &apiServer{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if n, _ := r.Body.Read(make([]byte, 1)); n == 1 {
			begun <- struct{}{}
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			panic(http.ErrAbortHandler) // there is nothing to answer
		}
	}))
	s.EnableHTTP2 = http2
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s, begun
}

// A client that breaks off what it sends has gone, and one that sends nonsense has made a
// mistake: the API server can be reached all the same, and nothing says otherwise.
func TestBrokenUpload(t *testing.T) {
	leave := func(conn net.Conn) { _ = conn.Close() }
	for name, tc := range map[string]struct {
		header, body string
		then         func(net.Conn)
		status       int
	}{
		"leaves":                {"Content-Length: 1000", "{", leave, statusClientClosed},
		"leaves a large upload": {fmt.Sprint("Content-Length: ", replayLimit+1), "{", leave, statusClientClosed},
		"leaves between chunks": {"Transfer-Encoding: chunked", "1\r\n{\r\n", leave, statusClientClosed},
		"ends its half":         {"Content-Length: 1000", "{", func(conn net.Conn) { _ = conn.(*tls.Conn).CloseWrite() }, statusClientClosed},
		"sends a chunk that is none": {"Transfer-Encoding: chunked", "1\r\n{\r\n", func(conn net.Conn) {
			_, _ = io.WriteString(conn, "nonsense\r\n")
		}, http.StatusBadRequest},
	} {
		for _, http2 := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, HTTP/2: %v", name, http2), func(t *testing.T) {
				api, begun := readingServer(t, http2)
				r := start(t, api, options{})
				conn, err := r.dial(t, alice.Addr)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
				if _, err := fmt.Fprintf(conn, "POST /api/v1/pods HTTP/1.1\r\nHost: %s\r\n%s\r\n\r\n%s", deviceName, tc.header, tc.body); err != nil {
					t.Fatal(err)
				}
				receive(t, begun, "the begin of the body")
				tc.then(conn)
				if tc.status == http.StatusBadRequest {
					res, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil {
						t.Fatal(err)
					}
					body, _ := io.ReadAll(res.Body)
					r.checkRefusal(t, res, string(body), http.StatusBadRequest, metav1.StatusReasonBadRequest, reasonBadRequest, "cannot be read")
				}
				if line := r.logs.lines(t, "request", 1)[0]; line["code"] != float64(tc.status) {
					t.Errorf("logged as %v, want the code %d", line, tc.status)
				}
				if n := metric(t, r.metrics, "tailhelm_apiproxy_refusals_total", "reason", reasonUpstream); n != 0 {
					t.Errorf("%v requests count as those that the API server cannot be reached for", n)
				}
			})
		}
	}
}

// So it is over HTTP/2.
func TestBrokenUploadOverHTTP2(t *testing.T) {
	api, begun := readingServer(t, true)
	r := start(t, api, options{})
	body, more := io.Pipe()
	failed := make(chan error, 1)
	go func() {
		res, err := r.client(t, alice.Addr, true).Do(r.request(t, http.MethodPost, "/api/v1/pods", body, nil))
		if err == nil {
			_ = res.Body.Close()
		}
		failed <- err
	}()
	_, _ = io.WriteString(more, "{")
	receive(t, begun, "the begin of the body")
	_ = more.CloseWithError(io.ErrClosedPipe) // the client resets the stream
	if err := receive(t, failed, "the end of the request"); err == nil {
		t.Error("the client got an answer")
	}
	if line := r.logs.lines(t, "request", 1)[0]; line["code"] != float64(statusClientClosed) {
		t.Errorf("logged as %v", line)
	}
}

// Over HTTP/2 the body may end before the request's context does. What has become of the
// client does not depend on which is first.
func TestBodyEndsBeforeItsContext(t *testing.T) {
	for proto, gone := range map[int]bool{1: false, 2: true} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", iotest.ErrReader(errors.New("broken")))
		r.ProtoMajor = proto
		markUpload(r)
		_, err := io.ReadAll(r.Body)
		f := failure(r, fmt.Errorf("sending: %w", err))
		if (f == nil) != gone || !gone && f.label != reasonBadRequest {
			t.Errorf("HTTP/%d: refused with %v", proto, f)
		}
	}
}

// An API server that breaks off is none of the client's making.
func TestBrokenUpstream(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		api, begun := readingServer(t, http2)
		r := start(t, api, options{})
		conn, err := r.dial(t, alice.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_, _ = fmt.Fprintf(conn, "POST /api/v1/pods HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n{", deviceName, replayLimit+1)
		receive(t, begun, "the begin of the body")
		api.CloseClientConnections()
		_, _ = io.WriteString(conn, strings.Repeat("x", replayLimit)) // transports wait for the body
		if line := r.logs.lines(t, "request", 1)[0]; line["refused"] != reasonUpstream {
			t.Errorf("HTTP/2 %v: logged as %v", http2, line)
		}
	}
}

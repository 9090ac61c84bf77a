// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bufio"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// stalled is a POST of which half the body has come, and nothing more comes.
const stalled = "POST /api/v1/namespaces HTTP/1.1\r\nHost: " + deviceName + "\r\nContent-Length: 100\r\n"

// A client that stalls amid a body that nobody wants gets its answer, and holds neither its
// call nor a drain.
func TestStalledUpload(t *testing.T) {
	gone := func(answers map[netip.Addr]identity.Identity, _ map[netip.Addr]error) { delete(answers, alice.Addr) }
	// The answer to this one is larger than what net/http holds back until the handler is done.
	asks := "Impersonate-Extra-" + strings.Repeat("x", 8000) + ": y\r\n"
	for name, tc := range map[string]struct {
		header string
		mode   Mode
		before bool // alice is gone before she asks
		code   string
	}{
		"refused":           {before: true, code: "401"},
		"refused at length": {header: asks, mode: ModeAuth, code: "403"},
		"revoked":           {code: "401"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startInMemoryAs(t, tc.mode, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }, time.Hour)
				if tc.before {
					r.peers.change(gone)
				}
				closed, answer := closing(r.send(t, stalled+tc.header+"\r\nhalf"))
				synctest.Wait()
				r.peers.change(gone)
				synctest.Wait()
				r.stop()
				time.Sleep(lastUpload - time.Millisecond)
				synctest.Wait()
				if isClosed(closed) {
					t.Error("the client had no time")
				}
				time.Sleep(2*lastUpload + time.Second) // the handler and net/http may each take one
				synctest.Wait()
				if !isClosed(closed) || len(r.served) == 0 {
					t.Errorf("the connection is closed: %v; the drain has ended: %v", isClosed(closed), len(r.served) > 0)
				}
				if !strings.HasPrefix(answer.String(), "HTTP/1.1 "+tc.code+" ") {
					t.Errorf("answered with %q, want a %s", answer, tc.code)
				}
			})
		})
	}
}

// The bounds of a call are none of the next one on its connection.
func TestBoundsEndWithTheCall(t *testing.T) {
	for name, tc := range map[string]struct {
		header string
		code   int
	}{
		"answered": {"", http.StatusOK},
		"refused":  {"Impersonate-User: boss\r\n", http.StatusForbidden},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				slow := 10 * farewell
				r := startInMemoryAs(t, ModeAuth, func(_ http.ResponseWriter, r *http.Request) {
					time.Sleep(slow)
					_, _ = io.Copy(io.Discard, r.Body)
				}, time.Hour)
				conn := r.send(t, "")
				answers := bufio.NewReader(conn)
				for range 3 {
					go func() {
						_, _ = io.WriteString(conn, stalled+tc.header+"\r\n"+strings.Repeat("x", 50))
						time.Sleep(lastUpload - time.Millisecond)
						_, _ = io.WriteString(conn, strings.Repeat("x", 50))
					}()
					res, err := http.ReadResponse(answers, nil)
					if err != nil {
						t.Fatal(err)
					}
					if body, err := io.ReadAll(res.Body); err != nil || res.StatusCode != tc.code || res.Close {
						t.Fatalf("status %s, %q, error %v, closed %v, want %d", res.Status, body, err, res.Close, tc.code)
					}
					time.Sleep(keepAliveTimeout - time.Second)
				}
				closed, _ := closing(answers)
				synctest.Wait()
				if isClosed(closed) {
					t.Error("the connection was closed too early")
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if !isClosed(closed) {
					t.Error("the idle connection is still open")
				}
			})
		})
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/net/http2"
)

// A request that the API server turned away unseen is sent again, whole; one that
// is too large for that is refused and never sent in part.
func TestReplay(t *testing.T) {
	small, limit, large := strings.Repeat("s", 1000), strings.Repeat("l", replayLimit), strings.Repeat("x", replayLimit+1)
	for name, refuse := range map[string]func(int) refuse{"GOAWAY": goAway, "REFUSED_STREAM": refuseStream} {
		for _, early := range []bool{true, false} {
			for _, chunked := range []bool{true, false} {
				for body, want := range map[string]int{"": 200, small: 200, limit: 200, large: 503} {
					if early && body == large {
						continue // whether anything was read by then is a matter of luck
					}
					t.Run(fmt.Sprintf("%s, early: %v, chunked: %v, %d bytes", name, early, chunked, len(body)), func(t *testing.T) {
						server := newH2Server(t, early, refuse(1))
						r := start(t, newAPIServer(t, nil), options{config: server.config})
						var reader io.Reader = strings.NewReader(body)
						if chunked {
							reader = io.MultiReader(reader)
						}
						res, text := r.do(t, alice.Addr, true, r.request(t, http.MethodPost, "/api/v1/pods", reader, nil))
						if res.StatusCode != want {
							t.Fatalf("status %s, want %d: %s", res.Status, want, text)
						}
						if want == http.StatusOK {
							if got := receive(t, server.bodies, "the body"); got != body {
								t.Errorf("%d bytes arrived at the second attempt, %d were sent", len(got), len(body))
							}
						} else if n := len(server.attempts); n != 1 {
							t.Errorf("%d attempts, want 1", n)
						}
					})
				}
			}
		}
	}
}

// A request that the API server has acted on is not sent again.
func TestNoReplayOfSeenRequests(t *testing.T) {
	server := newH2Server(t, false, func(_ int, f *http2.Framer, id uint32) bool {
		_ = f.WriteRSTStream(id, http2.ErrCodeInternal)
		return true
	})
	r := start(t, newAPIServer(t, nil), options{config: server.config})
	res, _ := r.do(t, alice.Addr, true, r.request(t, http.MethodPost, "/api/v1/pods", strings.NewReader("{}"), nil))
	if res.StatusCode != http.StatusServiceUnavailable || len(server.attempts) != 1 {
		t.Errorf("status %s after %d attempts, want 503 after 1", res.Status, len(server.attempts))
	}
}

// replayable returns a request whose body was made replayable.
func replayable(t *testing.T, body io.Reader, length int64) *http.Request {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", body)
	r.ContentLength = length
	makeReplayable(r)
	return r
}

func TestReplayBody(t *testing.T) {
	body := strings.Repeat("0123456789", 1000)
	for _, read := range []int64{0, 1, 5000, 10_000} {
		r := replayable(t, iotest.HalfReader(strings.NewReader(body)), -1)
		if n, err := io.CopyN(io.Discard, r.Body, read); err != nil {
			t.Fatalf("reading %d of %d: %v", n, read, err)
		}
		if err := r.Body.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			again, err := r.GetBody()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(again); string(got) != body || err != nil {
				t.Errorf("after %d bytes, the next reader gets %d of %d, %v", read, len(got), len(body), err)
			}
		}
	}
}

func TestReplayBodyKeepsNoMoreThanTheLimit(t *testing.T) {
	for size, kept := range map[int]bool{replayLimit - 1: true, replayLimit: true, replayLimit + 1: false, 3 * replayLimit: false} {
		r := replayable(t, strings.NewReader(strings.Repeat("x", size)), -1)
		if n, err := io.Copy(io.Discard, r.Body); n != int64(size) || err != nil {
			t.Errorf("%d of %d bytes, %v", n, size, err)
		}
		_, err := r.GetBody()
		if kept && err != nil || !kept && !errors.Is(err, errTooLarge) {
			t.Errorf("a second reader of %d bytes: %v", size, err)
		}
	}
}

// A second reader never begins in the middle, even when the first one outgrows
// what is kept after the second was made.
func TestReplayBodyNeverSkips(t *testing.T) {
	r := replayable(t, strings.NewReader(strings.Repeat("x", replayLimit)+"y"), -1)
	if _, err := io.CopyN(io.Discard, r.Body, 10); err != nil {
		t.Fatal(err)
	}
	second, err := r.GetBody()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(second); len(got) != 0 || !errors.Is(err, errTooLarge) {
		t.Errorf("the second reader gets %d bytes, %v", len(got), err)
	}
}

// An error of the client's body is everybody's.
func TestReplayBodyError(t *testing.T) {
	broken := errors.New("broken")
	r := replayable(t, io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken)), -1)
	if _, err := io.Copy(io.Discard, r.Body); !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	again, err := r.GetBody()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(again); string(got) != "abc" || !errors.Is(err, broken) {
		t.Errorf("the second reader gets %q, %v", got, err)
	}
}

func TestNotReplayable(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"no body":    func(r *http.Request) { r.Body = nil },
		"empty body": func(r *http.Request) { r.Body = http.NoBody },
		"upgrade":    func(r *http.Request) { r.Header.Set("Connection", "Upgrade"); r.Header.Set("Upgrade", "SPDY/3.1") },
		"too large":  func(r *http.Request) { r.ContentLength = replayLimit + 1 },
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader("x"))
			change(r)
			body := r.Body
			makeReplayable(r)
			if r.GetBody != nil || r.Body != body {
				t.Error("the body was made replayable")
			}
		})
	}
}

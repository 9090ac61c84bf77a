// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Compression is between the client and the API server.
func TestCompressionIsNotTouched(t *testing.T) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	_, _ = io.WriteString(w, strings.Repeat(`{"kind":"PodList"}`, 100))
	_ = w.Close()
	for name, tc := range map[string]struct{ accept []string }{
		"asked for": {[]string{"gzip"}}, "not asked for": {nil}, "refused": {[]string{"identity"}},
	} {
		t.Run(name, func(t *testing.T) {
			api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
					w.Header().Set("Content-Encoding", "gzip")
					_, _ = w.Write(packed.Bytes())
					return
				}
				_, _ = io.WriteString(w, "plain")
			})
			r := start(t, api, options{})
			header := http.Header{}
			if tc.accept != nil {
				header["Accept-Encoding"] = tc.accept
			}
			res, body := r.get(t, alice.Addr, "/api/v1/pods", header)
			if diff := cmp.Diff(tc.accept, api.only(t).Header["Accept-Encoding"]); diff != "" {
				t.Errorf("Accept-Encoding at the API server (-want +got):\n%s", diff)
			}
			if name == "asked for" {
				if res.Header.Get("Content-Encoding") != "gzip" || body != packed.String() {
					t.Errorf("%d bytes with the encoding %q, want the %d that the API server sent", len(body), res.Header.Get("Content-Encoding"), packed.Len())
				}
			} else if body != "plain" {
				t.Errorf("body %q", body)
			}
		})
	}
}

// Each event must arrive before the API server sends the next one.
func TestFlush(t *testing.T) {
	for name, uri := range map[string]string{"watch": "/api/v1/pods?watch=1", "log": "/api/v1/namespaces/a/pods/p/log?follow=true", "proxied": "/api/v1/namespaces/a/services/s/proxy/events"} {
		for _, http2 := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, HTTP/2: %v", name, http2), func(t *testing.T) {
				more := make(chan struct{})
				api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
					for i := 0; ; i++ {
						_, _ = fmt.Fprintf(w, "event %d\n", i)
						_ = http.NewResponseController(w).Flush()
						select {
						case <-more:
						case <-r.Context().Done():
							return
						}
					}
				})
				r := start(t, api, options{})
				res, err := r.client(t, alice.Addr, http2).Do(r.request(t, http.MethodGet, uri, nil, nil))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = res.Body.Close() }()
				lines := bufio.NewReader(res.Body)
				for i := range 3 {
					line, err := lines.ReadString('\n')
					if want := fmt.Sprintf("event %d\n", i); line != want || err != nil {
						t.Fatalf("%q, %v, want %q", line, err, want)
					}
					more <- struct{}{}
				}
			})
		}
	}
}

func TestResponseIsPassedOn(t *testing.T) {
	api := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Audit-Id", "a1")
		h["Warning"] = []string{"299 - one", "299 - two"}
		h.Set("Keep-Alive", "timeout=1")
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(http.StatusConflict)
		_, _ = io.WriteString(w, "body")
		h.Set("X-Sum", "1")
	})
	r := start(t, api, options{})
	res, body := r.get(t, alice.Addr, "/api/v1/pods", nil)
	if res.StatusCode != http.StatusConflict || body != "body" {
		t.Errorf("%s with %q", res.Status, body)
	}
	if diff := cmp.Diff([]string{"299 - one", "299 - two"}, res.Header["Warning"]); diff != "" {
		t.Errorf("Warning (-want +got):\n%s", diff)
	}
	if res.Header.Get("Audit-Id") != "a1" || res.Header["Keep-Alive"] != nil || res.Trailer.Get("X-Sum") != "1" {
		t.Errorf("header %v, trailer %v", res.Header, res.Trailer)
	}
	if line := r.logs.lines(t, "request", 1)[0]; line["auditID"] != "a1" || line["code"] != 409.0 || line["refused"] != nil {
		t.Errorf("logged as %v", line)
	}
}

// The end of a client ends its request at the API server, and is no failure of
// the API server.
func TestClientGoesAway(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		t.Run(fmt.Sprintf("HTTP/2: %v", http2), func(t *testing.T) {
			arrived, ended := make(chan struct{}), make(chan struct{})
			api := newAPIServer(t, func(_ http.ResponseWriter, r *http.Request) {
				close(arrived)
				<-r.Context().Done()
				close(ended)
			})
			r := start(t, api, options{})
			ctx, cancel := context.WithCancel(t.Context())
			failed := make(chan error, 1)
			go func() {
				res, err := r.client(t, alice.Addr, http2).Do(r.request(t, http.MethodGet, "/api/v1/pods", nil, nil).WithContext(ctx))
				if err == nil {
					_ = res.Body.Close()
				}
				failed <- err
			}()
			receive(t, arrived, "the request")
			cancel()
			if err := receive(t, failed, "the client's error"); !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			receive(t, ended, "the end of the request at the API server")
			if line := r.logs.lines(t, "request", 1)[0]; line["code"] != 499.0 || line["refused"] != nil {
				t.Errorf("logged as %v, want code 499", line)
			}
		})
	}
}

// The same while the client is still sending.
func TestClientGoesAwayWhileSending(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		for name, length := range map[string]int64{"known length": 1000, "unknown length": -1, "large": 2 * replayLimit} {
			t.Run(fmt.Sprintf("%s, HTTP/2: %v", name, http2), func(t *testing.T) {
				arrived := make(chan struct{})
				api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
					close(arrived)
					_, _ = io.Copy(io.Discard, r.Body)
					_, _ = io.WriteString(w, "{}")
				})
				r := start(t, api, options{})
				ctx, cancel := context.WithCancel(t.Context())
				body, sender := io.Pipe()
				request := r.request(t, http.MethodPost, "/api/v1/pods", body, nil).WithContext(ctx)
				request.ContentLength = length
				failed := make(chan error, 1)
				go func() {
					res, err := r.client(t, alice.Addr, http2).Do(request)
					if err == nil {
						_ = res.Body.Close()
						if res.StatusCode == statusClientClosed {
							// The proxy may answer between the TLS alert with which a client leaves and
							// the end of its connection.
							err = context.Canceled
						}
					}
					failed <- err
				}()
				_, _ = io.WriteString(sender, "some")
				receive(t, arrived, "the request")
				cancel()
				_ = sender.CloseWithError(context.Canceled)
				if err := receive(t, failed, "the client's error"); err == nil {
					t.Error("the client got an answer")
				}
				if line := r.logs.lines(t, "request", 1)[0]; line["code"] != 499.0 || line["refused"] != nil {
					t.Errorf("logged as %v, want code 499", line)
				}
			})
		}
	}
}

// An answer that the API server breaks off must not look whole to the client.
func TestAPIServerBreaksOff(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		t.Run(fmt.Sprintf("HTTP/2: %v", http2), func(t *testing.T) {
			api := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "the first half")
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			})
			r := start(t, api, options{})
			res, err := r.client(t, alice.Addr, http2).Do(r.request(t, http.MethodGet, "/api/v1/pods", nil, nil))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			if body, err := io.ReadAll(res.Body); err == nil {
				t.Errorf("the body ends with %q as if it were whole", body)
			}
			r.logs.lines(t, "request", 1)
		})
	}
}

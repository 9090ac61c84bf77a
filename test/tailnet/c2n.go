// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"

	"tailscale.com/tailcfg"
)

// C2N sends a request from the control server to a device and returns the
// device's answer, whose body is in memory. Only path, method, headers and
// body of req count; ctx bounds the wait.
func (t *Tailnet) C2N(ctx context.Context, hostname string, req *http.Request) (*http.Response, error) {
	t.mu.Lock()
	n, err := t.nodeLocked(hostname)
	t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return t.ask(ctx, n, req)
}

// ask is [Tailnet.C2N] to n.
func (t *Tailnet) ask(ctx context.Context, n *node, req *http.Request) (*http.Response, error) {
	var payload bytes.Buffer
	if err := req.Write(&payload); err != nil {
		return nil, fmt.Errorf("encoding the request: %w", err)
	}
	token, reply := rand.Text(), make(chan []byte, 1)
	t.change(func() {
		t.c2n[token] = reply
		// The host of the URL is unused: the device answers inside Noise.
		n.pings = append(n.pings, &tailcfg.PingRequest{URL: "https://unused/c2n/" + token, Types: "c2n", Payload: payload.Bytes()})
	})
	defer func() {
		t.mu.Lock()
		delete(t.c2n, token)
		t.mu.Unlock()
	}()
	select {
	case body := <-reply:
		return http.ReadResponse(bufio.NewReader(bytes.NewReader(body)), req)
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for %s to answer %s: %w", n.hostname, req.URL.Path, ctx.Err())
	}
}

// serveC2NReply takes a device's answer.
func (t *Tailnet) serveC2NReply(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	token := r.PathValue("token")
	t.mu.Lock()
	reply := t.c2n[token]
	delete(t.c2n, token)
	t.mu.Unlock()
	if reply == nil {
		http.NotFound(w, r)
		return
	}
	reply <- body
	w.WriteHeader(http.StatusNoContent)
}

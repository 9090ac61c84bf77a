// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

// TestDrain: after SIGTERM a session goes on, and everybody is served until it has ended.
// Then nobody new comes in, what is open ends well, and so does the process.
func TestDrain(t *testing.T) {
	t.Parallel()
	p := newReadyProxy(t, proxyOptions{args: []string{"--drain-timeout", patience.String()}})
	c, ns := bigReader(t, p)
	pod := newPod(t, ns)
	list := openBody(t, c, "/api/v1/namespaces/"+ns+"/configmaps")
	// Of nothing, so that no event is on its way when it ends.
	events := openBody(t, c, "/api/v1/namespaces/"+ns+"/secrets?watch=1")
	shell := c.start(protocols[0], "exec", "-n", ns, "-i", pod, "--", "cat")
	shell.ask("hello\n", "hello\n")
	for _, kind := range []string{"rest", "watch", "stream"} {
		p.waitMetric(t, 1, "tailhelm_apiproxy_requests_in_flight", "kind="+kind)
	}
	newcomer := newUser(t, p)

	noError(t, p.Signal(syscall.SIGTERM))
	p.readyz(t, "[-]shutdown failed: shutting down")
	shell.say("still here\n")
	shell.expect("still here\n")
	newcomer.mustKubectl("version")
	if _, words, err := c.kubectl("exec", "-n", ns, pod, "--", "true"); err == nil || !strings.Contains(words, "shutting down and starts no new sessions") {
		t.Errorf("another session while the proxy drains: %v: %s", err, words)
	}
	shell.say("and here\n")
	shell.expect("and here\n")
	noError(t, shell.stdin.Close())
	if err := shell.wait(within(t, patience)); err != nil {
		t.Errorf("exec ends with %v", err)
	}
	eventually(t, "new connections to be refused", func() bool {
		conn, err := newcomer.Dial(within(t, patience), "tcp", p.host+":443")
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	p.waitMetric(t, 1, "tailhelm_apiproxy_requests_in_flight", "kind=watch") // the list is not done
	rest, err := io.ReadAll(list)
	if err != nil || !json.Valid([]byte("{"+string(rest))) || len(rest) < bigCount*bigBytes {
		t.Errorf("the list ends with %v after %d bytes", err, len(rest))
	}
	if _, err := io.Copy(io.Discard, events); err != nil {
		t.Errorf("the watch ends with %v, want a clean end", err)
	}
	if code, err := p.Wait(within(t, patience)); err != nil || code != 0 {
		t.Errorf("exit status %d %v", code, err)
	}
}

// openBody begins to read a response: its first byte, a brace in a list.
func openBody(t *testing.T, c *caller, path string) io.Reader {
	t.Helper()
	res, err := c.HTTPClient().Do(c.request(within(t, patience), http.MethodGet, path, nil, "Accept-Encoding", "identity"))
	noError(t, err)
	t.Cleanup(func() { _ = res.Body.Close() })
	if !strings.Contains(path, "watch") {
		_, err = io.ReadFull(res.Body, make([]byte, 1))
		noError(t, err)
	}
	return res.Body
}

// TestDrainTimeout: what does not end by itself is ended.
func TestDrainTimeout(t *testing.T) {
	t.Parallel()
	p := newReadyProxy(t, proxyOptions{args: []string{"--drain-timeout", "1s"}})
	c, ns, pod := owner(t, p)
	shell := c.start(protocols[0], "exec", "-n", ns, "-i", pod, "--", "cat")
	shell.ask("hello\n", "hello\n")
	noError(t, p.Signal(syscall.SIGTERM))
	if err := shell.wait(within(t, patience)); err == nil {
		t.Error("kubectl thinks that the session ended well")
	}
	if code, err := p.Wait(within(t, patience)); err != nil || code != 0 {
		t.Errorf("exit status %d %v", code, err)
	}
	p.waitRequest(t, func(e logEntry) bool { return e.Kind == "stream" && e.Subresource == "exec" })
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

// TestReplicaHasNoLoopbackHop: callers come out of the process's own network stack. So a
// process that shares the pod's network finds no port there on which it could speak for
// somebody: one is for health and metrics; that of Tailscale's code, which peers use among
// themselves, closes connections of others.
func TestReplicaHasNoLoopbackHop(t *testing.T) {
	t.Parallel()
	g := newGroup(t, shared.tailnet, 1)
	p := g.startReady(1)[0]
	c := g.caller(tailnet.Identity{Login: unique("user") + "@example.com"}, p)
	c.mustKubectl("auth", "whoami") // all is open that is opened
	answering := map[string]bool{}
	for _, address := range listening(t, p.PID()) {
		for _, path := range []string{"/version", "/api", "/apis/authentication.k8s.io/v1/selfsubjectreviews", "/localapi/v0/status", "/debug/pprof/"} {
			code := c.speakFor(address, g.name+"."+g.tailnet.Domain(), path)
			answering[address] = answering[address] || code != 0
			if code != 0 && code != http.StatusNotFound {
				t.Errorf("%s on %s: %d", path, address, code)
			}
		}
	}
	health := 0
	for _, answers := range answering {
		if answers {
			health++
		}
	}
	if health != 1 {
		t.Errorf("ports, and whether they answer: %v; want one that does", answering)
	}
}

// speakFor asks a local address as if the caller did, and returns the code of the answer,
// or 0.
func (c *caller) speakFor(address, host, path string) int {
	c.t.Helper()
	r, err := http.NewRequestWithContext(within(c.t, patience), http.MethodGet, "http://"+address+path, nil)
	noError(c.t, err)
	r.Host = host
	for _, name := range []string{"Tailscale-User-Login", "X-Forwarded-For", "Impersonate-User"} {
		r.Header.Set(name, c.user)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0 // it was not answered
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// listening returns the addresses on which a process accepts TCP connections.
func listening(t *testing.T, pid int) []string {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d", pid)
	links, err := filepath.Glob(proc + "/fd/*")
	noError(t, err)
	own := map[string]bool{}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil { // else it was closed meanwhile
			own[target] = true
		}
	}
	if len(own) == 0 {
		t.Skip("this system does not tell what a process has open")
	}
	var addresses []string
	for _, table := range []string{"tcp", "tcp6"} {
		content, err := os.ReadFile(filepath.Join(proc, "net", table))
		noError(t, err)
		for _, line := range strings.Split(string(content), "\n") {
			const address, state, inode, listen = 1, 3, 9, "0A"
			fields := strings.Fields(line)
			if len(fields) <= inode || fields[state] != listen || !own["socket:["+fields[inode]+"]"] {
				continue
			}
			_, hex, _ := strings.Cut(fields[address], ":")
			var port uint16
			_, err := fmt.Sscanf(hex, "%x", &port)
			noError(t, err)
			addresses = append(addresses, fmt.Sprintf("127.0.0.1:%d", port))
		}
	}
	return addresses
}

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
// process that shares the pod's network finds one port there, for health and metrics, and
// can speak for nobody on it.
func TestReplicaHasNoLoopbackHop(t *testing.T) {
	t.Parallel()
	g := newGroup(t, shared.tailnet, 1)
	p := g.startReady(1)[0]
	c := g.caller(tailnet.Identity{Login: unique("user") + "@example.com"}, p)
	c.mustKubectl("auth", "whoami") // all is open that is opened
	ports := listening(t, p.PID())
	if len(ports) != 1 {
		t.Fatalf("the process listens on %v, want one port", ports)
	}
	address := "http://" + ports[0]
	for _, path := range []string{"/version", "/api", "/apis/authentication.k8s.io/v1/selfsubjectreviews", "/localapi/v0/status", "/debug/pprof/"} {
		r, err := http.NewRequestWithContext(within(t, patience), http.MethodGet, address+path, nil)
		noError(t, err)
		r.Host = g.name + "." + g.tailnet.Domain()
		for _, name := range []string{"Tailscale-User-Login", "X-Forwarded-For", "Impersonate-User"} {
			r.Header.Set(name, c.user)
		}
		res, err := http.DefaultClient.Do(r)
		noError(t, err)
		_ = res.Body.Close()
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
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

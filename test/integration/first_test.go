// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/tailhelm/tailhelm/test/kubernetes"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// counted is a way to the shared cluster's API server that counts connections.
type counted struct {
	host        string
	connections atomic.Int64
}

// countConnections returns a new way.
func countConnections(t *testing.T) *counted {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not wait
	noError(t, err)
	c := &counted{host: "https://" + l.Addr().String()}
	to := strings.TrimPrefix(shared.cluster.URL(), "https://")
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.connections.Add(1)
			go splice(conn, to)
		}
	}()
	return c
}

// splice connects conn with an address until one side ends.
func splice(conn net.Conn, to string) {
	defer func() { _ = conn.Close() }()
	other, err := net.Dial("tcp", to) //nolint:noctx // it is on this machine
	if err != nil {
		return
	}
	defer func() { _ = other.Close() }()
	go func() {
		_, _ = io.Copy(other, conn)
		_ = other.Close()
	}()
	_, _ = io.Copy(conn, other)
}

// fetched counts what a replica could fetch when it is asked for the first time:
// connections to the API server, tokens to impersonate with, and what the certificate
// authority is asked.
type fetched struct{ Connections, Tokens, ACME int }

// fetched returns what g's replica has fetched so far.
func (c *counted) fetched(g *replicaGroup) fetched {
	g.t.Helper()
	tokens, err := shared.cluster.AuditEvents(kubernetes.AuditFilter{Namespace: g.namespace, Resource: "serviceaccounts", Subresource: "token", Name: authProxy})
	noError(g.t, err)
	return fetched{Connections: int(c.connections.Load()), Tokens: len(tokens), ACME: g.tailnet.Calls(tailnet.PathACME)}
}

// TestFirstRequestFetchesNothing: when a replica says that it is ready, all that requests
// need is there. So the first one costs what the tenth costs. In mode noauth there are no
// credentials with which to keep a connection to the API server open: the first request
// opens it.
func TestFirstRequestFetchesNothing(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"auth", "noauth"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			tn := tailnet.New(t, tailnet.Options{})
			g := newGroup(t, tn, 1, "--mode="+mode)
			way := countConnections(t)
			g.throughServer(way.host)
			p := g.startReady(1)[0]
			c := g.caller(tailnet.Identity{Login: unique("user") + "@example.com"}, p)
			var before fetched
			eventually(t, "what the replica fetched until it was ready", func() bool {
				before = way.fetched(g)
				return before.Connections > 0 && before.ACME > 0 && (mode == "noauth" || before.Tokens == 1)
			})
			_, token := serviceAccount(t, newNamespace(t), "caller")
			for i := range 10 {
				header := []string{"Authorization", "Bearer " + token}
				if mode == "auth" {
					header = nil
				}
				if res, body := c.get("/version", header...); res.StatusCode != http.StatusOK {
					t.Fatalf("request %d: %s %s", i+1, res.Status, body)
				}
				if mode == "noauth" && i == 0 {
					before.Connections++
				}
				if after := way.fetched(g); after != before {
					t.Errorf("request %d made the replica fetch: %+v, had %+v", i+1, after, before)
				}
			}
		})
	}
}

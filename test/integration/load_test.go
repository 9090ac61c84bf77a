// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"syscall"
	"testing"

	"github.com/tailhelm/tailhelm/test/load"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// TestReplicasUnderLoad: a client that reads and writes all the time, and has watches,
// does not notice that replicas end one after the other.
func TestReplicasUnderLoad(t *testing.T) {
	t.Parallel()
	g := newGroup(t, shared.tailnet, 2)
	replicas := g.startReady(2)
	login := unique("user") + "@example.com"
	c := g.caller(tailnet.Identity{Login: login}, replicas...)
	ns := newNamespace(t, user(login))
	l, err := load.Start(within(t, patience), load.Config{Client: c.config(), Namespace: ns, Name: "load", Rate: 20, Watches: 20})
	noError(t, err)
	defer l.Stop()
	for range 3 {
		serving, _ := g.active(replicas)
		noError(t, serving.Signal(syscall.SIGTERM))
		if code, err := serving.Wait(within(t, patience)); err != nil || code != 0 {
			t.Errorf("exit status %d %v", code, err)
		}
		for i, p := range replicas {
			if p == serving {
				replicas[i] = g.start(i)
				noError(t, replicas[i].WaitReady(within(t, patience)))
			}
		}
		figures, err := l.Cut(within(t, patience), "a replica ends")
		noError(t, err)
		t.Log(figures)
		if figures.Failed > 0 || figures.FailedAttempts > 0 || figures.WatchesBroken > 0 || figures.WatchesLost > 0 || figures.EventsLost > 0 {
			t.Errorf("the client has noticed:\n%v", figures.Errors)
		}
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// serveRegister logs a device in or out.
func (t *Tailnet) serveRegister(w http.ResponseWriter, r *http.Request) {
	var req tailcfg.RegisterRequest
	if !readJSON(w, r, &req) {
		return
	}
	if req.NodeKey.IsZero() || req.Hostinfo == nil {
		http.Error(w, "a registration needs NodeKey and Hostinfo", http.StatusBadRequest)
		return
	}
	if req.Followup != "" {
		// The client waits for somebody to log in interactively, which
		// nobody can do here: it waits until it gives up.
		<-r.Context().Done()
		return
	}
	writeJSON(w, http.StatusOK, t.register(machineOf(r), &req))
}

func (t *Tailnet) register(machine key.MachinePublic, req *tailcfg.RegisterRequest) *tailcfg.RegisterResponse {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	n := t.nodes[req.NodeKey]
	switch {
	case n != nil && n.machine != machine:
		return &tailcfg.RegisterResponse{Error: "node key belongs to another machine"}
	case !req.Expiry.IsZero() && req.Expiry.Before(now):
		return t.logoutLocked(n, now)
	case n != nil && n.expired(now):
		return &tailcfg.RegisterResponse{NodeKeyExpired: true}
	case n != nil: // a restart with kept state: its auth key, if any, is not looked at
		t.renameLocked(n, req.Hostinfo.Hostname)
		t.bumpLocked()
		return t.registeredLocked(n)
	}
	return t.loginLocked(machine, req)
}

// loginLocked admits a node key that is not known yet.
func (t *Tailnet) loginLocked(machine key.MachinePublic, req *tailcfg.RegisterRequest) *tailcfg.RegisterResponse {
	if req.Auth == nil || req.Auth.AuthKey == "" {
		return &tailcfg.RegisterResponse{AuthURL: t.URL() + "/a/" + strings.ToLower(rand.Text()[:12])}
	}
	var identity Identity
	k, err := t.keys.use(req.Auth.AuthKey, func(k *authKey) (err error) {
		identity, err = t.requestTagsLocked(k.identity, req.Hostinfo.RequestTags)
		return err
	})
	if err != nil {
		return &tailcfg.RegisterResponse{Error: err.Error()}
	}
	n := t.previousLocked(machine, req.OldNodeKey, identity)
	if n == nil {
		n = t.addNodeLocked(machine, req.Hostinfo.Hostname)
	}
	t.setKeyLocked(n, req.NodeKey)
	n.identity, n.expiry = identity, time.Time{}
	n.ephemeral = k.ephemeral || req.Ephemeral
	n.hostinfo = req.Hostinfo
	t.bumpLocked()
	t.opts.Logf("registered %s as %s", t.fqdn(n), identity)
	return t.registeredLocked(n)
}

// requestTagsLocked is the identity of a device that asks for tags itself
// (--advertise-tags) and has a key for identity.
func (t *Tailnet) requestTagsLocked(identity Identity, tags []string) (Identity, error) {
	if len(tags) == 0 {
		return identity, nil
	}
	allowed := func(tag string) bool {
		if len(identity.Tags) > 0 {
			return slices.Contains(identity.Tags, tag)
		}
		return t.ownsTagLocked(identity.Login, tag)
	}
	if !slices.ContainsFunc(tags, func(tag string) bool { return !allowed(tag) }) {
		return Identity{Tags: tags}.clean(), nil
	}
	return Identity{}, errTags(tags)
}

// errTags is worded as Tailscale words it.
func errTags(tags []string) error {
	return fmt.Errorf("requested tags [%s] are invalid or not permitted", strings.Join(tags, " "))
}

// previousLocked finds the device which a new node key continues: the one
// whose key it replaces, or one of the same machine and identity.
func (t *Tailnet) previousLocked(machine key.MachinePublic, old key.NodePublic, id Identity) *node {
	if n := t.nodes[old]; n != nil && n.machine == machine {
		return n
	}
	for _, n := range t.nodes {
		if n.machine == machine && n.identity.String() == id.String() {
			return n
		}
	}
	return nil
}

// logoutLocked ends a device's key at its own wish. n may be nil: unknown.
func (t *Tailnet) logoutLocked(n *node, now time.Time) *tailcfg.RegisterResponse {
	if n == nil {
		return &tailcfg.RegisterResponse{}
	}
	if n.ephemeral {
		t.removeLocked(n)
	} else {
		n.expiry = now
	}
	t.bumpLocked()
	return t.registeredLocked(n)
}

func (t *Tailnet) registeredLocked(n *node) *tailcfg.RegisterResponse {
	p := t.profileLocked(n.identity)
	return &tailcfg.RegisterResponse{
		User:              tailcfg.User{ID: p.ID, DisplayName: p.DisplayName},
		Login:             tailcfg.Login{ID: tailcfg.LoginID(p.ID), Provider: "test", LoginName: p.LoginName, DisplayName: cmp.Or(p.DisplayName, p.LoginName)},
		MachineAuthorized: true,
	}
}

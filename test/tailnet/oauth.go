// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"
)

// OAuthClient makes an OAuth client for the HTTP API. It may make auth keys
// for exactly these tags together, or for tags that they own (see
// [Tailnet.SetTagOwners]): Tailscale's API refuses a part of them too.
func (t *Tailnet) OAuthClient(tags ...string) (id, secret string) {
	c := &oauthClient{id: newCredentialID(), tags: tags}
	c.secret = "tskey-client-" + c.id + "-" + rand.Text()
	t.api.clients.add(c)
	return c.id, c.secret
}

// RevokeOAuthClient makes an OAuth client or a federated one, and the access
// tokens it got, invalid.
func (t *Tailnet) RevokeOAuthClient(id string) error {
	if !t.api.clients.remove(id) {
		return fmt.Errorf("no OAuth client %q", id)
	}
	return nil
}

// tokenLife is how long an access token is good for.
const tokenLife = time.Hour

type oauthClient struct {
	id, secret string // no secret: a federated client
	tags       []string
	federation Federation
}

type accessTokenInfo struct {
	client  *oauthClient
	expires time.Time
}

type clientStore struct {
	mu      sync.Mutex
	clients map[string]*oauthClient // by id
	tokens  map[string]accessTokenInfo
}

func newClientStore() *clientStore {
	return &clientStore{clients: map[string]*oauthClient{}, tokens: map[string]accessTokenInfo{}}
}

func (s *clientStore) add(c *oauthClient) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients[c.id] = c
}

func (s *clientStore) remove(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.clients[id]
	delete(s.clients, id)
	return ok
}

func (s *clientStore) byID(id string) *oauthClient {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients[id]
}

// byToken is the client that holds an access token, or nil.
func (s *clientStore) byToken(token string) *oauthClient {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, ok := s.tokens[token]
	if !ok || time.Now().After(info.expires) {
		return nil
	}
	return s.clients[info.client.id]
}

func (s *clientStore) newToken(c *oauthClient) string {
	token := "tskey-api-" + newCredentialID() + "-" + rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[token] = accessTokenInfo{client: c, expires: time.Now().Add(tokenLife)}
	return token
}

// serveToken is OAuth's client credentials flow.
func (a *apiServer) serveToken(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	if grant := r.PostFormValue("grant_type"); grant != "" && grant != "client_credentials" {
		writeAPIError(w, http.StatusBadRequest, fmt.Sprintf("unsupported grant_type %q", grant))
		return
	}
	id, secret, ok := r.BasicAuth()
	if !ok {
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	c := a.clients.byID(id)
	if c == nil || c.secret == "" || subtle.ConstantTimeCompare([]byte(secret), []byte(c.secret)) != 1 {
		writeAPIError(w, http.StatusUnauthorized, "API token invalid")
		return
	}
	a.writeToken(w, c)
}

func (a *apiServer) writeToken(w http.ResponseWriter, c *oauthClient) {
	writeJSON(w, http.StatusOK, map[string]any{
		"access_token": a.clients.newToken(c), "token_type": "Bearer", "expires_in": int(tokenLife.Seconds()), "scope": "all",
	})
}

// mayTag reports whether a client may give these tags to a device.
func (t *Tailnet) mayTag(c *oauthClient, tags []string) bool {
	if (Identity{Tags: tags}).validate() != nil {
		return false
	}
	if slices.Equal((Identity{Tags: tags}).clean().Tags, (Identity{Tags: c.tags}).clean().Tags) {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return !slices.ContainsFunc(tags, func(tag string) bool {
		return !slices.ContainsFunc(c.tags, func(owner string) bool { return t.ownsTagLocked(owner, tag) })
	})
}

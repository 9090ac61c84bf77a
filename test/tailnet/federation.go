// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Federation describes the workloads that may act as a federated client
// (workload identity federation): bearers of an identity token which all that
// follows agrees with.
type Federation struct {
	// Issuer is the token's claim iss.
	Issuer string
	// Subject is the token's claim sub, such as
	// "system:serviceaccount:tailscale:operator"; any if empty.
	Subject string
	// Audience must be one of the token's claim aud;
	// "api.tailscale.com/<client id>" if empty.
	Audience string
	// Tags of the client, as those of [Tailnet.OAuthClient].
	Tags []string
	// JWKS returns the issuer's JSON Web Key Set. It is called for each token.
	JWKS func(context.Context) ([]byte, error)
	// Verify judges a token in place of all but Tags. Optional.
	Verify func(ctx context.Context, jwt string) error
}

// FederatedClient makes a client that gets its access tokens by exchange for
// identity tokens and has no secret. It returns the client's id.
func (t *Tailnet) FederatedClient(f Federation) (id string, err error) {
	if f.Verify == nil && (f.Issuer == "" || f.JWKS == nil) {
		return "", errors.New("a federated client needs Issuer and JWKS, or Verify")
	}
	c := &oauthClient{id: newCredentialID(), tags: f.Tags, federation: f}
	if f.Audience == "" {
		c.federation.Audience = "api.tailscale.com/" + c.id
	}
	t.api.clients.add(c)
	return c.id, nil
}

// serveTokenExchange trades an identity token for an access token.
func (a *apiServer) serveTokenExchange(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	c := a.clients.byID(r.PostFormValue("client_id"))
	if c == nil || c.secret != "" {
		writeAPIError(w, http.StatusUnauthorized, "unknown federated client")
		return
	}
	if err := c.federation.verify(r.Context(), r.PostFormValue("jwt")); err != nil {
		writeAPIError(w, http.StatusUnauthorized, "invalid identity token: "+err.Error())
		return
	}
	a.writeToken(w, c)
}

var signatureAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}

func (f Federation) verify(ctx context.Context, token string) error {
	if f.Verify != nil {
		return f.Verify(ctx, token)
	}
	parsed, err := jwt.ParseSigned(token, signatureAlgorithms)
	if err != nil {
		return err
	}
	raw, err := f.JWKS(ctx)
	if err != nil {
		return fmt.Errorf("getting the keys of %s: %w", f.Issuer, err)
	}
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(raw, &keys); err != nil {
		return fmt.Errorf("reading the keys of %s: %w", f.Issuer, err)
	}
	var claims jwt.Claims
	if err := parsed.Claims(keys, &claims); err != nil {
		return err
	}
	if claims.Expiry == nil {
		return errors.New("the token has no expiry")
	}
	return claims.Validate(jwt.Expected{
		Issuer: f.Issuer, Subject: f.Subject, AnyAudience: jwt.Audience{f.Audience}, Time: time.Now(),
	})
}

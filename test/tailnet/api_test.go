// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	tailscale "tailscale.com/client/tailscale/v2"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

func apiClient(t *testing.T, tn *tailnet.Tailnet, auth tailscale.Auth) *tailscale.Client {
	t.Helper()
	base, err := url.Parse(tn.URL())
	if err != nil {
		t.Fatal(err)
	}
	return &tailscale.Client{BaseURL: base, Auth: auth}
}

func oauth(t *testing.T, tn *tailnet.Tailnet, tags ...string) *tailscale.Client {
	t.Helper()
	id, secret := tn.OAuthClient(tags...)
	return apiClient(t, tn, &tailscale.OAuth{ClientID: id, ClientSecret: secret})
}

func keyRequest(tags ...string) tailscale.CreateKeyRequest {
	var req tailscale.CreateKeyRequest
	req.Description = "a test"
	req.Capabilities.Devices.Create.Preauthorized = true
	req.Capabilities.Devices.Create.Tags = tags
	return req
}

func TestAPIKeyJoinsDevice(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	ctx, client := testContext(t), oauth(t, tn, "tag:proxy")
	key, err := client.Keys().CreateAuthKey(ctx, keyRequest("tag:proxy"))
	if err != nil {
		t.Fatal(err)
	}
	if err := up(t, tn, "proxy", key.Key, "tag:proxy"); err != nil {
		t.Fatal(err)
	}
	if err := up(t, tn, "second", key.Key); err == nil {
		t.Error("a second device joined with a key that is not reusable")
	}
	devices, err := client.Devices().List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(devices) != 1 || devices[0].Name != "proxy."+tn.Domain() || !slices.Equal(devices[0].Tags, []string{"tag:proxy"}) {
		t.Fatalf("devices = %+v, want proxy with its tag", devices)
	}
	if got, err := client.Devices().Get(ctx, devices[0].NodeID); err != nil || got.Hostname != "proxy" {
		t.Errorf("Get = %+v, %v", got, err)
	}
	if err := client.Devices().Delete(ctx, devices[0].NodeID); err != nil {
		t.Error(err)
	}
	if _, err := client.Devices().Get(ctx, devices[0].NodeID); !tailscale.IsNotFound(err) {
		t.Errorf("Get of a deleted device = %v, want not found", err)
	}
	if n := len(tn.Devices()); n != 0 {
		t.Errorf("%d devices are left", n)
	}
}

func TestAPIKeys(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	ctx, client := testContext(t), oauth(t, tn, "tag:proxy")
	req := keyRequest("tag:proxy")
	req.Capabilities.Devices.Create.Reusable, req.ExpirySeconds = true, 3600
	key, err := client.Keys().CreateAuthKey(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	got, err := client.Keys().Get(ctx, key.ID)
	if err != nil {
		t.Fatal(err)
	}
	life := got.Expires.Sub(got.Created).Round(time.Second)
	if got.Key != "" || got.Invalid || life != time.Hour || !got.Capabilities.Devices.Create.Reusable || got.Description != "a test" {
		t.Errorf("Get = %+v", got)
	}
	if err := client.Keys().Delete(ctx, key.ID); err != nil {
		t.Fatal(err)
	}
	if keys, err := client.Keys().List(ctx, true); err != nil || len(keys) != 0 {
		t.Errorf("List = %v, %v, want none", keys, err)
	}
	if err := up(t, tn, "late", key.Key); err == nil || !strings.Contains(err.Error(), "not valid") {
		t.Errorf("Up with a deleted key = %v", err)
	}
}

func TestAPITags(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	if err := tn.SetTagOwners(map[string][]string{"tag:k8s": {"tag:operator"}}); err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	one, two := oauth(t, tn, "tag:operator"), oauth(t, tn, "tag:a", "tag:b")
	for _, tc := range []struct {
		name   string
		client *tailscale.Client
		tags   []string
		want   string // part of the error; empty: none
	}{
		{"own", one, []string{"tag:operator"}, ""},
		{"owned", one, []string{"tag:k8s"}, ""},
		{"foreign", one, []string{"tag:x"}, "requested tags [tag:x] are invalid or not permitted"},
		{"malformed", one, []string{"operator"}, "requested tags [operator] are invalid or not permitted"},
		{"none", one, nil, "must have tags set"},
		{"all of two", two, []string{"tag:b", "tag:a"}, ""},
		{"one of two", two, []string{"tag:a"}, "not permitted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := tc.client.Keys().CreateAuthKey(ctx, keyRequest(tc.tags...))
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var apiErr tailscale.APIError
			if !errors.As(err, &apiErr) || apiErr.Status != http.StatusBadRequest || !strings.Contains(apiErr.Message, tc.want) {
				t.Errorf("err = %v, want 400 %s", err, tc.want)
			}
		})
	}
}

func TestAPIRefusesCredentials(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	ctx := testContext(t)
	id, _ := tn.OAuthClient("tag:proxy")
	wrong := apiClient(t, tn, &tailscale.OAuth{ClientID: id, ClientSecret: "tskey-client-wrong"})
	if _, err := wrong.Devices().List(ctx); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("with a wrong secret: %v, want 401", err)
	}
	none := &tailscale.Client{BaseURL: wrong.BaseURL, APIKey: "tskey-api-none"}
	if _, err := none.Devices().List(ctx); err == nil || !strings.Contains(err.Error(), "API token invalid (401)") {
		t.Errorf("with an unknown token: %v, want 401", err)
	}
	id, secret := tn.OAuthClient("tag:proxy")
	revoked := apiClient(t, tn, &tailscale.OAuth{ClientID: id, ClientSecret: secret})
	if _, err := revoked.Devices().List(ctx); err != nil {
		t.Fatal(err)
	}
	if err := tn.RevokeOAuthClient(id); err != nil {
		t.Fatal(err)
	}
	if _, err := revoked.Devices().List(ctx); err == nil {
		t.Error("an access token outlived its client")
	}
}

func TestAPIFaults(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	ctx, client := testContext(t), oauth(t, tn, "tag:proxy")
	tn.Fail(tailnet.PathKeys, tailnet.Fault{Method: http.MethodPost, Status: http.StatusTooManyRequests, Message: "slow down", Times: 2})
	for i, fails := range []bool{true, true, false} {
		_, err := client.Keys().CreateAuthKey(ctx, keyRequest("tag:proxy"))
		if fails != (err != nil) || fails && !strings.Contains(err.Error(), "slow down (429)") {
			t.Errorf("call %d: %v, want a failure: %t", i, err, fails)
		}
	}
	if n := tn.Calls(tailnet.PathKeys); n != 3 {
		t.Errorf("%d calls counted, want 3", n)
	}
	restore := tn.Fail(tailnet.PathAPI, tailnet.Fault{Status: http.StatusServiceUnavailable})
	if _, err := client.Devices().List(ctx); err == nil {
		t.Error("no error while the API is down")
	}
	restore()
	if _, err := client.Devices().List(ctx); err != nil {
		t.Error(err)
	}
	short, cancel := context.WithCancel(ctx)
	tn.Fail(tailnet.PathDevices, tailnet.Fault{Delay: time.Hour})
	go cancel()
	if _, err := client.Devices().List(short); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that hangs = %v, want canceled", err)
	}
	tn.ClearFaults()
	if _, err := client.Devices().List(ctx); err != nil {
		t.Error(err)
	}
}

// issuer makes identity tokens as a cluster's API server does.
type issuer struct {
	key    *ecdsa.PrivateKey
	signer jose.Signer
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "one"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{key: key, signer: signer}
}

func (i *issuer) jwks(context.Context) ([]byte, error) {
	return json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: "one", Algorithm: "ES256"}}})
}

func (i *issuer) token(t *testing.T, c jwt.Claims) string {
	t.Helper()
	token, err := jwt.Signed(i.signer).Claims(c).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestFederation(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	cluster := newIssuer(t)
	const subject = "system:serviceaccount:tailscale:operator"
	id, err := tn.FederatedClient(tailnet.Federation{Issuer: "https://cluster", Subject: subject, Tags: []string{"tag:operator"}, JWKS: cluster.jwks})
	if err != nil {
		t.Fatal(err)
	}
	claims := func(change func(*jwt.Claims)) jwt.Claims {
		c := jwt.Claims{Issuer: "https://cluster", Subject: subject, Audience: jwt.Audience{"api.tailscale.com/" + id}, Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour))}
		if change != nil {
			change(&c)
		}
		return c
	}
	for name, tc := range map[string]struct {
		signedBy *issuer
		change   func(*jwt.Claims)
		works    bool
	}{
		"good":           {cluster, nil, true},
		"other key":      {newIssuer(t), nil, false},
		"other issuer":   {cluster, func(c *jwt.Claims) { c.Issuer = "https://other" }, false},
		"other subject":  {cluster, func(c *jwt.Claims) { c.Subject = "system:serviceaccount:default:default" }, false},
		"other audience": {cluster, func(c *jwt.Claims) { c.Audience = jwt.Audience{"https://cluster"} }, false},
		"not yet":        {cluster, func(c *jwt.Claims) { c.NotBefore = jwt.NewNumericDate(time.Now().Add(time.Hour)) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			client := apiClient(t, tn, &tailscale.IdentityFederation{ClientID: id, IDTokenFunc: func() (string, error) {
				return tc.signedBy.token(t, claims(tc.change)), nil
			}})
			_, err := client.Keys().CreateAuthKey(testContext(t), keyRequest("tag:operator"))
			if tc.works != (err == nil) {
				t.Errorf("CreateAuthKey = %v, want it to work: %t", err, tc.works)
			}
		})
	}
}

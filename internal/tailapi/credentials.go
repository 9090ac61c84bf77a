// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"golang.org/x/sync/singleflight"
	tailscale "tailscale.com/client/tailscale/v2"
)

// Credentials are an OAuth client, or a workload identity that is exchanged for one's
// rights, and the address at which they count.
type Credentials struct {
	// BaseURL is the API's address; "" means Tailscale's.
	BaseURL string
	// ClientIDFile and ClientSecretFile hold an OAuth client.
	ClientIDFile, ClientSecretFile string
	// ClientID and IDTokenFile are a workload identity: a client, and the file with the
	// token that is exchanged for its rights. They are used when ClientID is set.
	ClientID, IDTokenFile string
}

// secret is what the files of credentials hold.
type secret struct{ id, secret string }

// read reads the files. A workload identity has none that must be read now: its token
// is read for each exchange.
func (c Credentials) read() (s secret, err error) {
	if c.ClientID != "" {
		return secret{id: c.ClientID}, nil
	}
	if s.id, err = ReadSecret(c.ClientIDFile); err != nil {
		return s, err
	}
	s.secret, err = ReadSecret(c.ClientSecretFile)
	return s, err
}

// client returns a client of Tailscale's library that uses what the credentials' files
// hold. Requests and those for access tokens end after a timeout.
func (c Credentials) client(s secret) (*tailscale.Client, error) {
	client := &tailscale.Client{UserAgent: "tailhelm", HTTP: &http.Client{Transport: observer{http.DefaultTransport}, Timeout: timeout}}
	if c.BaseURL != "" {
		base, err := url.Parse(c.BaseURL)
		if err != nil {
			return nil, fmt.Errorf("the address of the Tailscale API: %w", err)
		}
		client.BaseURL = base
	}
	if c.ClientID != "" {
		client.Auth = sharedTokens{&tailscale.IdentityFederation{
			ClientID:    c.ClientID,
			IDTokenFunc: func() (string, error) { return ReadSecret(c.IDTokenFile) },
		}}
	} else {
		client.Auth = sharedTokens{oauthClient(s)}
	}
	return client, nil
}

// oauthClient is like the library's OAuth, but bounds the request for an access token
// as well: one that hangs would hang its caller for ever.
type oauthClient secret

// HTTPClient implements [tailscale.Auth].
func (s oauthClient) HTTPClient(orig *http.Client, baseURL string) *http.Client {
	config := clientcredentials.Config{ClientID: s.id, ClientSecret: s.secret, TokenURL: baseURL + "/api/v2/oauth/token"}
	ctx := context.WithValue(context.Background(), oauth2.HTTPClient, orig) // outlives requests: it refreshes tokens
	return &http.Client{Transport: &oauth2.Transport{Base: orig.Transport, Source: config.TokenSource(ctx)}, Timeout: orig.Timeout}
}

// sharedTokens is an Auth whose requests wait for an access token no longer than their
// contexts allow, and together. The transport of the oauth2 library knows no contexts there,
// and lets requests ask one after the other: with an endpoint for tokens that hangs, each
// would wait as often as there are others before it.
type sharedTokens struct{ tailscale.Auth }

// HTTPClient implements [tailscale.Auth].
func (s sharedTokens) HTTPClient(orig *http.Client, baseURL string) *http.Client {
	client := s.Auth.HTTPClient(orig, baseURL)
	if t, ok := client.Transport.(*oauth2.Transport); ok {
		client.Transport = &tokenTransport{base: t.Base, source: t.Source}
	}
	return client
}

// tokenTransport sends requests with an access token of source, which keeps the last one
// and bounds its requests for others.
type tokenTransport struct {
	base   http.RoundTripper
	source oauth2.TokenSource
	asking singleflight.Group
}

// RoundTrip implements [http.RoundTripper].
func (t *tokenTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := t.token(r.Context())
	if err != nil {
		if r.Body != nil {
			err = errors.Join(err, r.Body.Close())
		}
		return nil, err
	}
	r = r.Clone(r.Context())
	token.SetAuthHeader(r)
	return t.base.RoundTrip(r)
}

// token returns an access token, or ctx's error. What others wait for goes on without ctx.
func (t *tokenTransport) token(ctx context.Context) (*oauth2.Token, error) {
	answer := t.asking.DoChan("", func() (any, error) { return t.source.Token() })
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for an access token: %w", ctx.Err())
	case a := <-answer:
		if a.Err != nil {
			return nil, a.Err
		}
		return a.Val.(*oauth2.Token), nil //nolint:forcetypeassert // of source
	}
}

// ReadSecret returns the content of a file that must hold something, without white space
// around it.
func ReadSecret(path string) (string, error) {
	b, err := os.ReadFile(path) //nolint:gosec // the path is the operator's configuration
	if err != nil {
		return "", fmt.Errorf("reading credentials: %w", err)
	}
	value := strings.TrimSpace(string(b))
	if value == "" {
		return "", fmt.Errorf("the credentials file %s is empty", path)
	}
	return value, nil
}

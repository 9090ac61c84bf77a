// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailapi

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	tailscale "tailscale.com/client/tailscale/v2"
)

// timeout bounds each request.
const timeout = 30 * time.Second

// Service is a Tailscale Service.
type Service = tailscale.VIPService

// Client calls the API. It may be used by several goroutines.
type Client struct {
	credentials Credentials

	mu     sync.Mutex
	with   secret // what client was made of
	client *tailscale.Client
	// failing is why calls for a scope do not get through, as the last ones showed.
	failing map[string]failure
}

// failure is a call that did not get through.
type failure struct {
	err *Error
	at  time.Time
}

// memory is how long a failure that is not seen again counts. Those who call at all call
// more often.
const memory = 15 * time.Minute

// New returns a client. It asks nobody and reads nothing yet.
func New(c Credentials) *Client { return &Client{credentials: c} }

// Warning returns nil, or why calls do not get through, whatever they are for: the
// credentials are refused, lack a scope, or the API is away. It is what the last call showed.
func (c *Client) Warning(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, scope := range slices.Sorted(maps.Keys(c.failing)) {
		if f := c.failing[scope]; time.Since(f.at) < memory {
			return f.err
		}
	}
	return nil
}

// Service returns a Service by its name ("svc:..."), or nil when there is none.
func (c *Client) Service(ctx context.Context, name string) (*Service, error) {
	var s *Service
	err := c.call(ctx, "reading Tailscale Service "+name, scopeServices, func(ctx context.Context, api *tailscale.Client) (err error) {
		s, err = api.VIPServices().Get(ctx, name)
		return err
	})
	if IsNotFound(err) {
		return nil, nil //nolint:nilnil // there is none, and that is an answer
	}
	return s, err
}

// PutService creates or replaces a Service.
func (c *Client) PutService(ctx context.Context, s Service) error {
	return c.call(ctx, "writing Tailscale Service "+s.Name, scopeServices, func(ctx context.Context, api *tailscale.Client) error {
		return api.VIPServices().CreateOrUpdate(ctx, s)
	})
}

// DeleteService deletes a Service, if there is one.
func (c *Client) DeleteService(ctx context.Context, name string) error {
	return ignoreNotFound(c.call(ctx, "deleting Tailscale Service "+name, scopeServices, func(ctx context.Context, api *tailscale.Client) error {
		return api.VIPServices().Delete(ctx, name)
	}))
}

// Key is an auth key for one login.
type Key struct {
	ID     string
	Secret string
	Ends   time.Time
}

// CreateKey mints an auth key: for one login, within lifetime, preauthorized, for a
// device with tags. description is for people who read the list of keys.
func (c *Client) CreateKey(ctx context.Context, tags []string, description string, lifetime time.Duration) (Key, error) {
	request := tailscale.CreateKeyRequest{ExpirySeconds: int64(lifetime.Seconds()), Description: description}
	request.Capabilities.Devices.Create.Preauthorized = true
	request.Capabilities.Devices.Create.Tags = tags
	var key Key
	err := c.call(ctx, "minting an auth key with "+strings.Join(tags, ", "), scopeKeys, func(ctx context.Context, api *tailscale.Client) error {
		ends := time.Now().Add(lifetime)
		k, err := api.Keys().CreateAuthKey(ctx, request)
		if err == nil {
			key = Key{ID: k.ID, Secret: k.Key, Ends: ends}
		}
		return err
	})
	return key, err
}

// DeleteKey revokes an auth key, if there is one.
func (c *Client) DeleteKey(ctx context.Context, id string) error {
	return ignoreNotFound(c.call(ctx, "revoking auth key "+id, scopeKeys, func(ctx context.Context, api *tailscale.Client) error {
		return api.Keys().Delete(ctx, id)
	}))
}

// call calls f with a client and makes an [Error] of what it returns. action says
// what is attempted, scope what the credentials need for it.
func (c *Client) call(ctx context.Context, action, scope string, f func(context.Context, *tailscale.Client) error) error {
	api, err := c.open()
	if err != nil {
		e := &Error{Action: action, Kind: KindCredentials, Err: err}
		c.note(scope, e)
		return e
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var seen answer
	err = f(context.WithValue(limited, answerKey{}, &seen), api)
	switch {
	case err == nil:
		c.note(scope, nil)
		return nil
	case ctx.Err() != nil: // the caller's end says nothing of the API
		return fmt.Errorf("%s: %w", action, err)
	}
	e := newError(action, scope, seen, err)
	c.note(scope, e)
	if e.Kind == KindCredentials {
		c.forget(api)
	}
	return e
}

// note keeps for Warning what a call for a scope showed, which failed with e unless that is
// nil.
func (c *Client) note(scope string, e *Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e == nil || e.Kind == KindNotFound || e.Kind == KindInvalid || e.Kind == KindRateLimited {
		delete(c.failing, scope) // an answer to this call alone, or one that ends by itself
		return
	}
	if c.failing == nil {
		c.failing = map[string]failure{}
	}
	c.failing[scope] = failure{e, time.Now()}
}

// open returns a client with the credentials that the files hold now.
func (c *Client) open() (*tailscale.Client, error) {
	s, err := c.credentials.read()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil && c.with == s {
		return c.client, nil
	}
	client, err := c.credentials.client(s)
	if err != nil {
		return nil, err
	}
	c.client, c.with = client, s
	return client, nil
}

// forget drops a client whose access token was refused.
func (c *Client) forget(client *tailscale.Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client == client {
		c.client = nil
	}
}

// answer is what the library does not tell about an answer.
type answer struct {
	status     int
	retryAfter time.Duration
}

type answerKey struct{} // context key of an *answer

// observer notes answers for [Client.call].
type observer struct{ http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (o observer) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := o.RoundTripper.RoundTrip(r)
	if seen, ok := r.Context().Value(answerKey{}).(*answer); ok && err == nil {
		*seen = answer{response.StatusCode, retryAfter(response.Header.Get("Retry-After"), time.Now())}
	}
	return response, err
}

// retryAfter reads the header Retry-After: seconds, or a date.
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailapi

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeAPI answers requests for tokens and others with what a test sets.
type fakeAPI struct {
	mu           sync.Mutex
	token, other http.HandlerFunc
	tokens       int
	clients      []string // that asked for tokens
}

func (a *fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Path != "/api/v2/oauth/token" {
		a.other(w, r)
		return
	}
	id, _, _ := r.BasicAuth()
	a.mu.Lock()
	a.tokens++
	a.clients = append(a.clients, id)
	a.mu.Unlock()
	if a.token != nil {
		a.token(w, r)
		return
	}
	_, _ = io.WriteString(w, `{"access_token":"access","token_type":"Bearer","expires_in":3600}`)
}

// status answers with a status and a body.
func status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

// client returns a client of a, and the folder with its credentials.
func client(t *testing.T, a *fakeAPI) (*Client, string) {
	t.Helper()
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	write(t, dir, "id", "client")
	write(t, dir, "secret", "s")
	return New(Credentials{BaseURL: server.URL, ClientIDFile: filepath.Join(dir, "id"), ClientSecretFile: filepath.Join(dir, "secret")}), dir
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestErrors(t *testing.T) {
	limited := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "17")
		status(429, `{"message":"slow down"}`)(w, r)
	}
	for name, tc := range map[string]struct {
		token, other http.HandlerFunc
		kind         Kind
		after        time.Duration
		message      string
	}{
		"401":             {nil, status(401, `{"message":"API token invalid"}`), KindCredentials, 0, "API token invalid"},
		"403":             {nil, status(403, `{"message":"calling actor does not have enough permissions"}`), KindForbidden, 0, "write scope auth_keys"},
		"400 for tags":    {nil, status(400, `{"message":"requested tags [tag:k8s] are invalid or not permitted"}`), KindInvalid, 0, "tagOwners"},
		"404":             {nil, status(404, `{"message":"not found"}`), KindNotFound, 0, "has no such API"},
		"429":             {nil, limited, KindRateLimited, 17 * time.Second, "slow down"},
		"500":             {nil, status(500, `{"message":"internal"}`), KindUnavailable, 0, "tried again"},
		"502 of a proxy":  {nil, status(502, `<html>Bad Gateway</html>`), KindUnavailable, 0, "answered 502 Bad Gateway"},
		"404 of a proxy":  {nil, status(404, `<html>Not Found</html>`), KindUnavailable, 0, "answered 404 Not Found"},
		"404 in JSON":     {nil, status(404, `{"error":"no route"}`), KindUnavailable, 0, "answered 404 Not Found"},
		"403 of a proxy":  {nil, status(403, `<html>Forbidden</html>`), KindForbidden, 0, "answered 403 Forbidden"},
		"token 401":       {status(401, `{"message":"bad client"}`), nil, KindCredentials, 0, "check the ID and secret"},
		"token 400":       {status(400, `{"error":"invalid_client"}`), nil, KindCredentials, 0, "check the ID and secret"},
		"token 404":       {status(404, `404 page not found`), nil, KindUnavailable, 0, "has no such API"},
		"token 404, JSON": {status(404, `{"message":"not found"}`), nil, KindUnavailable, 0, "has no such API"},
		"token 429":       {limited, nil, KindRateLimited, 17 * time.Second, ""},
		"token 500":       {status(500, `{}`), nil, KindUnavailable, 0, ""},
		"hangs up":        {nil, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, KindUnavailable, 0, "tried again"},
		"token hangs up":  {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, nil, KindUnavailable, 0, "tried again"},
		"unknown success": {nil, status(200, `surprise`), KindUnavailable, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := client(t, &fakeAPI{token: tc.token, other: tc.other})
			_, err := c.CreateKey(t.Context(), []string{"tag:k8s"}, "a test", time.Hour)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v, want an *Error", err)
			}
			if e.Kind != tc.kind || e.RetryAfter != tc.after || !strings.Contains(e.Error(), tc.message) ||
				!strings.HasPrefix(e.Error(), "minting an auth key with tag:k8s: ") {
				t.Errorf("%s, again after %v: %q, want %s, %v, %q", e.Kind, e.RetryAfter, e, tc.kind, tc.after, tc.message)
			}
		})
	}
}

// A caller that gives up is not kept when the API hangs.
func TestHangingAPI(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	c, _ := client(t, &fakeAPI{other: func(http.ResponseWriter, *http.Request) { <-hang }})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := c.Service(ctx, "svc:x"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that the caller gave up", err)
	}
}

// A caller that gives up is not kept when the endpoint for tokens hangs either, nor by others
// who wait, and takes nothing away from them: they get the token that was asked for.
func TestHangingTokenEndpoint(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"id": "client", "secret": "s", "token": identityToken()} {
		write(t, dir, name, content)
	}
	for name, credentials := range map[string]Credentials{
		"OAuth client":      {ClientIDFile: filepath.Join(dir, "id"), ClientSecretFile: filepath.Join(dir, "secret")},
		"workload identity": {ClientID: "identity", IDTokenFile: filepath.Join(dir, "token")},
	} {
		t.Run(name, func(t *testing.T) {
			asked, answer := make(chan struct{}, 9), make(chan struct{})
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				if strings.HasPrefix(r.URL.Path, "/api/v2/oauth/") {
					asked <- struct{}{}
					<-answer
				}
				_, _ = io.WriteString(w, `{"access_token":"access","token_type":"Bearer","expires_in":3600}`)
			}))
			defer server.Close()
			credentials.BaseURL = server.URL
			c := New(credentials)
			patient := make(chan error, 1)
			go func() { patient <- c.PutService(t.Context(), Service{Name: "svc:x"}) }()
			<-asked
			ctx, giveUp := context.WithCancel(t.Context())
			others := make(chan error, 3)
			for range cap(others) {
				go func() { others <- c.DeleteService(ctx, "svc:x") }()
			}
			giveUp()
			for range cap(others) {
				if err := <-others; !errors.Is(err, context.Canceled) {
					t.Errorf("error %v, want that the caller gave up", err)
				}
			}
			close(answer)
			if err := <-patient; err != nil || len(asked) > 0 {
				t.Errorf("%v, and %d requests for other tokens, want the one token", err, len(asked))
			}
		})
	}
}

// What is gone need not be deleted, and is no error to look for.
func TestNotFound(t *testing.T) {
	c, _ := client(t, &fakeAPI{other: status(404, `{"message":"not found"}`)})
	s, err := c.Service(t.Context(), "svc:x")
	if s != nil || err != nil {
		t.Errorf("%v, %v, want nothing", s, err)
	}
	for what, err := range map[string]error{
		"service": c.DeleteService(t.Context(), "svc:x"), "device": c.DeleteDevice(t.Context(), OwnDevice{id: "n1"}), "key": c.DeleteKey(t.Context(), "k1"),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if d, err := c.OwnDevice(t.Context(), "n1", func(DeviceIdentity) bool { return true }); d != nil || err != nil {
		t.Errorf("%v, %v, want nothing", d, err)
	}
	if err := c.PutService(t.Context(), Service{Name: "svc:x"}); !IsNotFound(err) {
		t.Errorf("writing: %v, want an error", err)
	}
}

// A 404 that is not the API's says nothing of what was asked for: nobody may take it for gone.
func TestNotFoundOfAnother(t *testing.T) {
	for name, api := range map[string]*fakeAPI{
		"a front end":    {other: status(404, `<html>Not Found</html>`)},
		"token endpoint": {token: status(404, `{"message":"not found"}`)},
	} {
		c, _ := client(t, api)
		_, service := c.Service(t.Context(), "svc:x")
		_, device := c.OwnDevice(t.Context(), "n1", func(DeviceIdentity) bool { return true })
		for what, err := range map[string]error{
			"reading a service": service, "deleting a service": c.DeleteService(t.Context(), "svc:x"), "reading a device": device,
			"deleting a device": c.DeleteDevice(t.Context(), OwnDevice{id: "n1"}), "deleting a key": c.DeleteKey(t.Context(), "k1"),
		} {
			if err == nil || IsNotFound(err) {
				t.Errorf("%s, %s: %v, want an error that does not say that there is none", name, what, err)
			}
		}
	}
}

// Credentials are replaced while the program runs, and a refused token is not used
// again.
func TestCredentialsChange(t *testing.T) {
	api := &fakeAPI{other: status(200, `{}`)}
	c, dir := client(t, api)
	call := func() error { return c.PutService(t.Context(), Service{Name: "svc:x"}) }
	for range 2 {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	if api.tokens != 1 {
		t.Errorf("asked for %d tokens, want 1", api.tokens)
	}
	write(t, dir, "id", "other\n")
	if err := call(); err != nil || api.tokens != 2 || api.clients[1] != "other" {
		t.Errorf("%v, clients %v, want a token for the new client", err, api.clients)
	}
	api.other = status(401, `{"message":"API token invalid"}`)
	if err := call(); err == nil {
		t.Error("no error for a refused token")
	}
	api.other = status(200, `{}`)
	if err := call(); err != nil || api.tokens != 3 {
		t.Errorf("%v, %d tokens, want a new token", err, api.tokens)
	}
	write(t, dir, "secret", "")
	var e *Error
	if err := call(); !errors.As(err, &e) || e.Kind != KindCredentials || !strings.Contains(err.Error(), "secret is empty") {
		t.Errorf("error %v, want one about the empty file", err)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "x": 0, "-1": 0, "90": 90 * time.Second, "Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:00:00 GMT": 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

// TestWarning: what keeps every call from getting through is told until one does; what is
// about one call is not.
func TestWarning(t *testing.T) {
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"revoked":      {status(401, `{"message":"API token invalid"}`), "API token invalid"},
		"scope":        {status(403, `{"message":"not enough permissions"}`), "write scope auth_keys"},
		"away":         {status(502, `<html>`), "502"},
		"not found":    {status(404, `{"message":"not found"}`), ""},
		"refused tags": {status(400, `{"message":"requested tags [tag:k8s] are invalid"}`), ""},
		"rate limited": {status(429, `{"message":"slow down"}`), ""},
	} {
		t.Run(name, func(t *testing.T) {
			api := &fakeAPI{other: tc.answer}
			c, _ := client(t, api)
			create := func(ctx context.Context) error {
				_, err := c.CreateKey(ctx, []string{"tag:k8s"}, "a test", time.Hour)
				return err
			}
			if err := c.Warning(t.Context()); err != nil {
				t.Errorf("before the first call: %v", err)
			}
			if create(t.Context()) == nil {
				t.Fatal("the call succeeds")
			}
			if err := c.Warning(t.Context()); (err != nil) != (tc.want != "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("the warning is %v, want %q", err, tc.want)
			}
			api.other = status(200, `{"id":"k","key":"tskey"}`)
			if err := create(t.Context()); err != nil {
				t.Fatal(err)
			}
			gone, end := context.WithCancel(t.Context())
			end()
			if create(gone) == nil {
				t.Error("a call whose caller has gone succeeds")
			}
			if err := c.Warning(t.Context()); err != nil {
				t.Errorf("after a call that succeeded: %v", err)
			}
		})
	}
}

// identityToken returns a token of a workload identity that lasts for an hour.
func identityToken() string {
	part := func(json string) string { return base64.RawURLEncoding.EncodeToString([]byte(json)) }
	return part(`{"alg":"none"}`) + "." + part(fmt.Sprintf(`{"exp":%d}`, time.Now().Add(time.Hour).Unix())) + "." + part("signature")
}

// TestWorkloadIdentity: the token in the file is exchanged for the rights of the client.
func TestWorkloadIdentity(t *testing.T) {
	jwt := identityToken()
	var exchanged string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch {
		case r.URL.Path == "/api/v2/oauth/token-exchange":
			exchanged = r.FormValue("client_id") + " " + r.FormValue("jwt")
			_, _ = io.WriteString(w, `{"access_token":"access","token_type":"Bearer","expires_in":3600}`)
		case r.Header.Get("Authorization") != "Bearer access":
			w.WriteHeader(http.StatusUnauthorized)
		default:
			_, _ = io.WriteString(w, `{"id":"k1","key":"tskey-auth-minted"}`)
		}
	}))
	defer server.Close()
	dir := t.TempDir()
	write(t, dir, "token", jwt+"\n")
	c := New(Credentials{BaseURL: server.URL, ClientID: "identity", IDTokenFile: filepath.Join(dir, "token")})
	key, err := c.CreateKey(t.Context(), []string{"tag:k8s"}, "a test", time.Hour)
	if err != nil || key.Secret != "tskey-auth-minted" {
		t.Fatalf("key %+v, %v", key, err)
	}
	if exchanged != "identity "+jwt {
		t.Errorf("exchanged %q", exchanged)
	}
}

// TestTokenExchangeFails: a refusal is one of the credentials only if it is meant for them.
func TestTokenExchangeFails(t *testing.T) {
	for code, want := range map[int]Kind{
		400: KindCredentials, 401: KindCredentials, 403: KindCredentials, 404: KindUnavailable, 408: KindUnavailable, 429: KindRateLimited, 500: KindUnavailable,
	} {
		server := httptest.NewServer(status(code, `{"message":"no"}`))
		defer server.Close()
		dir := t.TempDir()
		write(t, dir, "token", identityToken())
		c := New(Credentials{BaseURL: server.URL, ClientID: "identity", IDTokenFile: filepath.Join(dir, "token")})
		_, err := c.CreateKey(t.Context(), []string{"tag:k8s"}, "a test", time.Hour)
		var e *Error
		if !errors.As(err, &e) || e.Kind != want || !strings.Contains(err.Error(), "token exchange failed") {
			t.Errorf("%d: %v, want %s", code, err, want)
		}
	}
}

// TestCredentialsThatCannotBeRead: the message names the file, or the address.
func TestCredentialsThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "id", "client")
	write(t, dir, "empty", " \n")
	id, empty := filepath.Join(dir, "id"), filepath.Join(dir, "empty")
	for name, tc := range map[string]struct {
		credentials Credentials
		want        string
	}{
		"no ID":       {Credentials{ClientIDFile: "/nowhere/id", ClientSecretFile: id}, "reading credentials: open /nowhere/id"},
		"no secret":   {Credentials{ClientIDFile: id, ClientSecretFile: "/nowhere/secret"}, "reading credentials: open /nowhere/secret"},
		"empty":       {Credentials{ClientIDFile: id, ClientSecretFile: empty}, "the credentials file " + empty + " is empty"},
		"bad address": {Credentials{BaseURL: "://", ClientIDFile: id, ClientSecretFile: id}, "the address of the Tailscale API"},
	} {
		_, err := New(tc.credentials).CreateKey(t.Context(), nil, "", time.Hour)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

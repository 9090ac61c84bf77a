// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// write writes a file and returns its path.
func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// keyAPI is the part of the Tailscale API that mints keys.
type keyAPI struct {
	tokenCode int    // of the answer to a request for an access token; 0 is 200
	keyCode   int    // of the answer to a request for a key; 0 is 200
	message   string // with keyCode
	form      map[string][]string
	user      [2]string
	request   map[string]any
}

func (a *keyAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/api/v2/oauth/token", "/api/v2/oauth/token-exchange":
		_ = r.ParseForm()
		a.form = r.Form
		a.user[0], a.user[1], _ = r.BasicAuth()
		if a.tokenCode != 0 {
			w.WriteHeader(a.tokenCode)
		}
		_, _ = io.WriteString(w, `{"access_token":"access","token_type":"Bearer","expires_in":3600}`)
	case "/api/v2/tailnet/-/keys":
		if r.Header.Get("Authorization") != "Bearer access" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewDecoder(r.Body).Decode(&a.request)
		if a.keyCode != 0 {
			w.WriteHeader(a.keyCode)
			_ = json.NewEncoder(w).Encode(map[string]string{"message": a.message})
			return
		}
		_, _ = io.WriteString(w, `{"id":"k1","key":"tskey-auth-minted"}`)
	default:
		http.NotFound(w, r)
	}
}

// minter returns a Minter with an OAuth client of api.
func minter(t *testing.T, api *keyAPI) *Minter {
	t.Helper()
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	return &Minter{
		BaseURL: server.URL, Tags: []string{"tag:k8s", "tag:prod"}, Description: "a test",
		ClientIDFile: write(t, dir, "id", "client\n"), ClientSecretFile: write(t, dir, "secret", " tskey-client-secret\n"),
	}
}

func TestMinter(t *testing.T) {
	api := &keyAPI{}
	key, err := minter(t, api).AuthKey(t.Context())
	if key != "tskey-auth-minted" || err != nil {
		t.Fatalf("key %q, %v", key, err)
	}
	want := map[string]any{
		"expirySeconds": 600.0, "description": "a test",
		"capabilities": map[string]any{"devices": map[string]any{"create": map[string]any{
			"reusable": false, "ephemeral": false, "preauthorized": true, "tags": []any{"tag:k8s", "tag:prod"},
		}}},
	}
	if diff := cmp.Diff(want, api.request); diff != "" {
		t.Errorf("the key that is asked for (-want +got):\n%s", diff)
	}
	if api.user != [2]string{"client", "tskey-client-secret"} && (len(api.form["client_secret"]) == 0 || api.form["client_secret"][0] != "tskey-client-secret") {
		t.Errorf("credentials %q, form %v", api.user, api.form)
	}
}

func TestMinterWorkloadIdentity(t *testing.T) {
	api := &keyAPI{}
	m := minter(t, api)
	part := func(json string) string { return base64.RawURLEncoding.EncodeToString([]byte(json)) }
	jwt := part(`{"alg":"none"}`) + "." + part(fmt.Sprintf(`{"exp":%d}`, time.Now().Add(time.Hour).Unix())) + "." + part("signature")
	m.ClientID, m.IDTokenFile = "identity", write(t, t.TempDir(), "token", jwt+"\n")
	m.ClientIDFile, m.ClientSecretFile = "", ""
	key, err := m.AuthKey(t.Context())
	if key != "tskey-auth-minted" || err != nil {
		t.Fatalf("key %q, %v", key, err)
	}
	if diff := cmp.Diff([]string{jwt}, api.form["jwt"]); diff != "" {
		t.Errorf("token that is exchanged (-want +got):\n%s\nform %v", diff, api.form)
	}
}

// Credentials that are replaced on disk are used at the next login.
func TestMinterReadsFilesAgain(t *testing.T) {
	api := &keyAPI{}
	m := minter(t, api)
	for _, id := range []string{"client", "rotated"} {
		write(t, filepath.Dir(m.ClientIDFile), "id", id)
		if _, err := m.AuthKey(t.Context()); err != nil {
			t.Fatal(err)
		}
		if api.user[0] != id && (len(api.form["client_id"]) == 0 || api.form["client_id"][0] != id) {
			t.Errorf("the client is %q, form %v, want %s", api.user, api.form, id)
		}
	}
}

// What people meet most is told with what to do.
func TestMinterHints(t *testing.T) {
	for name, tc := range map[string]struct {
		api    *keyAPI
		change func(*Minter)
		want   string
	}{
		"tags":          {&keyAPI{keyCode: 400, message: "requested tags [tag:k8s] are invalid or not permitted"}, nil, "must own all of tag:k8s, tag:prod"},
		"scope":         {&keyAPI{keyCode: 403, message: "calling actor does not have enough permissions"}, nil, "needs the write scope auth_keys"},
		"client":        {&keyAPI{tokenCode: 401}, nil, "check the client ID and secret of the OAuth client"},
		"something new": {&keyAPI{keyCode: 500, message: "boom"}, nil, "minting an auth key with the Tailscale API: "},
		"no ID":         {&keyAPI{}, func(m *Minter) { m.ClientIDFile = "/nowhere/id" }, "reading credentials: open /nowhere/id"},
		"no secret":     {&keyAPI{}, func(m *Minter) { m.ClientSecretFile = "/nowhere/secret" }, "reading credentials: open /nowhere/secret"},
		"bad address":   {&keyAPI{}, func(m *Minter) { m.BaseURL = "://" }, "the address of the Tailscale API"},
	} {
		t.Run(name, func(t *testing.T) {
			m := minter(t, tc.api)
			if tc.change != nil {
				tc.change(m)
			}
			key, err := m.AuthKey(t.Context())
			if key != "" || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("key %q, error %v, want %q", key, err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "tskey-client-secret") {
				t.Errorf("the message holds the secret: %v", err)
			}
		})
	}
}

func TestFixedKeys(t *testing.T) {
	dir := t.TempDir()
	if key, err := FixedKey("k").AuthKey(t.Context()); key != "k" || err != nil {
		t.Errorf("%q, %v", key, err)
	}
	file := KeyFile(write(t, dir, "key", "\n one \n"))
	if key, err := file.AuthKey(t.Context()); key != "one" || err != nil {
		t.Errorf("%q, %v", key, err)
	}
	write(t, dir, "key", "two")
	if key, err := file.AuthKey(t.Context()); key != "two" || err != nil {
		t.Errorf("after a change: %q, %v", key, err)
	}
	write(t, dir, "key", " \n")
	if key, err := file.AuthKey(t.Context()); key != "" || err == nil || !strings.Contains(err.Error(), "is empty") {
		t.Errorf("an empty file: %q, %v", key, err)
	}
}

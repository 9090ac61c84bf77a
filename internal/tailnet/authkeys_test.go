// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tailhelm/tailhelm/internal/tailapi"
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

// TestMinter: a key is for one login of a device with the tags, and can be used for ten
// minutes. How the API is asked, and what its errors mean, is internal/tailapi's.
func TestMinter(t *testing.T) {
	var request struct {
		ExpirySeconds int
		Description   string
		Capabilities  struct {
			Devices struct {
				Create struct {
					Reusable, Ephemeral, Preauthorized bool
					Tags                               []string
				}
			}
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/api/v2/oauth/token" {
			_, _ = io.WriteString(w, `{"access_token":"access","token_type":"Bearer","expires_in":3600}`)
			return
		}
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, `{"id":"k1","key":"tskey-auth-minted"}`)
	}))
	defer server.Close()
	dir := t.TempDir()
	m := &Minter{
		API:  tailapi.New(tailapi.Credentials{BaseURL: server.URL, ClientIDFile: write(t, dir, "id", "client"), ClientSecretFile: write(t, dir, "secret", "s")}),
		Tags: []string{"tag:k8s", "tag:prod"}, Description: "a test",
	}
	if key, err := m.AuthKey(t.Context()); key != "tskey-auth-minted" || err != nil {
		t.Fatalf("key %q, %v", key, err)
	}
	create := request.Capabilities.Devices.Create
	if request.ExpirySeconds != 600 || request.Description != "a test" || create.Reusable || create.Ephemeral || !create.Preauthorized || !slices.Equal(create.Tags, m.Tags) {
		t.Errorf("the key that is asked for: %+v", request)
	}
}

func TestFixedKeys(t *testing.T) {
	dir := t.TempDir()
	if key, err := FixedAuthKey("k").AuthKey(t.Context()); key != "k" || err != nil {
		t.Errorf("%q, %v", key, err)
	}
	file := AuthKeyFile(write(t, dir, "key", "\n one \n"))
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

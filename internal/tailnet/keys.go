// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	tailscale "tailscale.com/client/tailscale/v2"

	"github.com/tailhelm/tailhelm/internal/tailapi"
)

// Keys give a node the auth keys with which it logs in.
type Keys interface {
	// AuthKey returns an auth key for the next login.
	AuthKey(ctx context.Context) (string, error)
}

// FixedKey is an auth key that was given.
type FixedKey string

// AuthKey returns the key.
func (k FixedKey) AuthKey(context.Context) (string, error) { return string(k), nil }

// KeyFile is the path of a file with an auth key. It is read at each login, so
// the key can be replaced.
type KeyFile string

// AuthKey returns what the file holds, without white space around it.
func (f KeyFile) AuthKey(context.Context) (string, error) { return readTrimmed(string(f)) }

// Minter mints an auth key for each login with the Tailscale API, so that no
// long-lived key exists. Files are read at each login, so credentials can be
// rotated.
type Minter struct {
	// BaseURL is the API's address; "" means Tailscale's.
	BaseURL string
	// Tags are what the device is tagged with.
	Tags []string
	// Description is noted with the key, for people who read the list of keys.
	Description string

	// ClientIDFile and ClientSecretFile hold an OAuth client.
	ClientIDFile, ClientSecretFile string
	// ClientID and IDTokenFile are a workload identity: a client and the file with
	// the token that is exchanged for its rights. They are used when ClientID is set.
	ClientID, IDTokenFile string
}

// keyLifetime is how long a minted key can be used. It is used at once.
const keyLifetime = 10 * time.Minute

// AuthKey mints a key for one login: single use, preauthorized, tagged.
func (m *Minter) AuthKey(ctx context.Context) (string, error) {
	client, err := m.client()
	if err != nil {
		return "", err
	}
	request := tailscale.CreateKeyRequest{ExpirySeconds: int64(keyLifetime.Seconds()), Description: m.Description}
	request.Capabilities.Devices.Create.Preauthorized = true
	request.Capabilities.Devices.Create.Tags = m.Tags
	key, err := client.Keys().CreateAuthKey(ctx, request)
	if err != nil {
		return "", fmt.Errorf("minting an auth key with the Tailscale API: %w%s", err, m.hint(err))
	}
	return key.Key, nil
}

// hint says what to do about the errors that people meet most.
func (m *Minter) hint(err error) string {
	var api tailscale.APIError
	switch {
	case errors.As(err, &api) && strings.Contains(api.Message, "tags"):
		return fmt.Sprintf(" (the OAuth client must own all of %s: give it exactly these tags, or tags that own them under tagOwners in the tailnet policy)", strings.Join(m.Tags, ", "))
	case errors.As(err, &api) && api.Status == http.StatusForbidden:
		return " (the OAuth client needs the write scope auth_keys)"
	case strings.Contains(err.Error(), "oauth2:"):
		return " (check the client ID and secret of the OAuth client, and that it was not revoked)"
	}
	return ""
}

// client returns a client of the API with fresh credentials.
func (m *Minter) client() (*tailscale.Client, error) {
	return tailapi.Credentials{
		BaseURL: m.BaseURL, ClientIDFile: m.ClientIDFile, ClientSecretFile: m.ClientSecretFile,
		ClientID: m.ClientID, IDTokenFile: m.IDTokenFile,
	}.NewClient()
}

// readTrimmed returns the content of a file that must hold something.
func readTrimmed(path string) (string, error) {
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

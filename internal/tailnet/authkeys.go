// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"time"

	"github.com/tailhelm/tailhelm/internal/tailapi"
)

// AuthKeys give a node the auth keys with which it logs in.
type AuthKeys interface {
	// AuthKey returns an auth key for the next login.
	AuthKey(ctx context.Context) (string, error)
}

// FixedAuthKey is an auth key that was given.
type FixedAuthKey string

// AuthKey returns the key.
func (k FixedAuthKey) AuthKey(context.Context) (string, error) { return string(k), nil }

// AuthKeyFile is the path of a file with an auth key. It is read at each login, so
// the key can be replaced.
type AuthKeyFile string

// AuthKey returns what the file holds, without white space around it.
func (f AuthKeyFile) AuthKey(context.Context) (string, error) { return tailapi.ReadSecret(string(f)) }

// Minter mints an auth key for each login with the Tailscale API, so that no
// long-lived key exists.
type Minter struct {
	// API mints the keys.
	API *tailapi.Client
	// Tags are what the device is tagged with.
	Tags []string
	// Description is noted with the key, for people who read the list of keys.
	Description string
}

// keyLifetime is how long a minted key can be used. It is used at once.
const keyLifetime = 10 * time.Minute

// AuthKey mints a key for one login: single use, preauthorized, tagged.
func (m *Minter) AuthKey(ctx context.Context) (string, error) {
	key, err := m.API.CreateKey(ctx, m.Tags, m.Description, keyLifetime)
	return key.Secret, err
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"tailscale.com/tailcfg"
)

// DefaultLogin owns the devices of the zero [Identity].
const DefaultLogin = "user@example.com"

// Identity says who a device is: a user's, or a tagged one.
type Identity struct {
	// Login of the owner. Ignored when there are tags; [DefaultLogin] if empty.
	Login string
	// Tags, each "tag:something".
	Tags []string
}

// String is the login, or the tags separated by commas.
func (id Identity) String() string {
	if len(id.Tags) > 0 {
		return strings.Join(id.Tags, ",")
	}
	return cmp.Or(id.Login, DefaultLogin)
}

// clean returns id in its one normal form: tags sorted, or a login alone.
func (id Identity) clean() Identity {
	if len(id.Tags) > 0 {
		tags := slices.Clone(id.Tags)
		slices.Sort(tags)
		return Identity{Tags: slices.Compact(tags)}
	}
	return Identity{Login: cmp.Or(id.Login, DefaultLogin)}
}

func (id Identity) validate() error {
	for _, tag := range id.Tags {
		if err := tailcfg.CheckTag(tag); err != nil {
			return fmt.Errorf("tag %q: %w", tag, err)
		}
	}
	return nil
}

// taggedDevices is the user that owns all tagged devices, with the number and
// the names that Tailscale's own control server uses.
var taggedDevices = tailcfg.UserProfile{ID: 2147455555, LoginName: "tagged-devices", DisplayName: "Tagged Devices"}

// profileLocked is the owner of a device with this identity. Users exist from
// their first device on and keep their number.
func (t *Tailnet) profileLocked(id Identity) tailcfg.UserProfile {
	if len(id.Tags) > 0 {
		return taggedDevices
	}
	uid, ok := t.users[id.Login]
	if !ok {
		uid = tailcfg.UserID(1000 + len(t.users))
		t.users[id.Login] = uid
	}
	return tailcfg.UserProfile{ID: uid, LoginName: id.Login, DisplayName: id.Login}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/http/httpguts"
	"tailscale.com/client/tailscale/apitype"
	"tailscale.com/tailcfg"
)

// Errors that [FromWhoIs] returns, to be told apart with [errors.Is].
// A malformed grant is a [*GrantError].
var (
	// ErrUnknownPeer means that the tailnet does not know the caller.
	ErrUnknownPeer = errors.New("the caller is not a device of this tailnet")
	// ErrExpired means that the node key of the caller's device has expired.
	ErrExpired = errors.New("the node key of the caller's device has expired")
	// ErrNoName means that the tailnet gives the caller no name that Kubernetes could use.
	ErrNoName = errors.New("the tailnet gives the caller no usable name")
)

// Identity is one caller, as Kubernetes RBAC sees it. It is immutable once made:
// copies share their slices.
type Identity struct {
	// User is the Kubernetes user name. It is never empty in an Identity that
	// FromWhoIs returned.
	User string
	// Groups are the Kubernetes groups in first-seen order, without duplicates.
	Groups []string
	// MustRecord means that a grant demands that the caller's sessions are recorded
	// or refused (enforceRecorder). One such grant is enough.
	MustRecord bool
	// Recorders are where the caller's sessions are recorded, in the order of the grants
	// and without duplicates; empty: nowhere.
	Recorders []netip.AddrPort
	// Events means that a grant asks for an event per request (enableEvents).
	Events bool
	// Node is the name of the caller's device: its FQDN without the trailing dot.
	Node string
	// NodeID is the stable ID of the caller's device.
	NodeID tailcfg.StableNodeID
	// Tagged reports whether the device is tagged, that is, owned by no user.
	Tagged bool
	// Tags are the tags of a tagged device.
	Tags []string
	// UserID is the user whose device it is, if it is not tagged.
	UserID tailcfg.UserID
	// Addr is the tailnet address that the caller was asked for.
	Addr netip.Addr
}

// Equal reports whether a and b are the same caller with the same rights: device,
// user and groups. The order of groups counts, as it does to audit logs. Where sessions
// are recorded is no right: a recorder may move without the end of its sessions.
func (a Identity) Equal(b Identity) bool {
	return a.NodeID == b.NodeID && a.User == b.User && a.Tagged == b.Tagged && a.MustRecord == b.MustRecord && slices.Equal(a.Groups, b.Groups)
}

// FromWhoIs maps the tailnet's answer for addr to an Identity. It returns
// [ErrUnknownPeer] for an empty answer, [ErrExpired] for an expired node key,
// [ErrNoName] for a caller without a name, and a [*GrantError] for a grant that
// cannot be read.
func FromWhoIs(addr netip.Addr, who *apitype.WhoIsResponse) (Identity, error) {
	if who == nil || who.Node == nil {
		return Identity{}, ErrUnknownPeer
	}
	if who.Node.Expired {
		return Identity{}, ErrExpired
	}
	id, err := named(who)
	if err != nil {
		return Identity{}, err
	}
	id.Addr = addr
	grants, err := ParseGrants(who.CapMap)
	if err != nil {
		return Identity{}, err
	}
	id.MustRecord = slices.ContainsFunc(grants, func(g Grant) bool { return g.EnforceRecorder })
	id.Recorders = recordersOf(grants)
	id.Events = slices.ContainsFunc(grants, func(g Grant) bool { return g.EnableEvents })
	if id.Groups = groupsOf(grants); len(id.Groups) > 0 || !id.Tagged {
		return id, nil
	}
	if id.Groups, err = tagsOf(who.Node); err != nil {
		return Identity{}, err
	}
	return id, nil
}

// tagsOf returns the tags of node as groups.
func tagsOf(node *tailcfg.Node) ([]string, error) {
	for _, tag := range node.Tags {
		if err := carriable(tag); err != nil {
			return nil, fmt.Errorf("%w: tag %q %w", ErrNoName, tag, err)
		}
	}
	return slices.Clone(node.Tags), nil
}

// named fills in who the caller is, before what it may do.
func named(who *apitype.WhoIsResponse) (Identity, error) {
	id := Identity{
		Node:   strings.TrimSuffix(who.Node.Name, "."),
		NodeID: who.Node.StableID,
		Tagged: who.Node.IsTagged(),
	}
	if id.Tagged {
		id.User, id.Tags = id.Node, who.Node.Tags
	} else if who.UserProfile != nil {
		id.User, id.UserID = who.UserProfile.LoginName, who.UserProfile.ID
	}
	if err := carriable(id.User); err != nil {
		return Identity{}, fmt.Errorf("%w: name %q %w", ErrNoName, id.User, err)
	}
	return id, nil
}

// carriable says why name would not reach the API server byte for byte in an
// HTTP header: RFC 9110 section 5.5 strips white space around field values and
// forbids control characters. Bytes that are not UTF-8 count as U+FFFD, which is
// what decoders of JSON have put in their place already.
func carriable(name string) error {
	switch {
	case name == "":
		return errors.New("is empty")
	case strings.TrimSpace(name) != name:
		return errors.New("has white space around it")
	case !httpguts.ValidHeaderFieldValue(name):
		return errors.New("has control characters")
	case strings.ContainsRune(name, utf8.RuneError):
		return errors.New("is not valid UTF-8")
	}
	return nil
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"tailscale.com/tailcfg"
)

// Names of the peer capability whose values are grants to Kubernetes.
const (
	// Capability is the name that tailnet policies use.
	Capability = tailcfg.PeerCapabilityKubernetes
	// LegacyCapability is the older name. It counts only for a caller that has
	// no value under Capability.
	LegacyCapability tailcfg.PeerCapability = "https://" + Capability
)

// Grant is one value of the capability: what the tailnet policy lets a caller
// be and demand on this proxy. The JSON is Tailscale's.
type Grant struct {
	// Impersonate adds to who the caller is.
	Impersonate *Impersonate `json:"impersonate,omitempty"`
	// Recorder is the tag of the recorder nodes, as the policy's author wrote it.
	Recorder []string `json:"recorder,omitempty"`
	// RecorderAddrs are those nodes' addresses, filled in by the control plane.
	RecorderAddrs []netip.AddrPort `json:"recorderAddrs,omitempty"`
	// EnforceRecorder refuses sessions that no recorder takes.
	EnforceRecorder bool `json:"enforceRecorder,omitempty"`
	// EnableEvents asks for an event per API request.
	EnableEvents bool `json:"enableEvents,omitempty"`
}

// Impersonate is what a grant adds to the caller's Kubernetes identity.
type Impersonate struct {
	// Groups are Kubernetes groups.
	Groups []string `json:"groups,omitempty"`
}

// GrantError is a grant that cannot be read.
type GrantError struct {
	// Capability is the name under which the grant was found.
	Capability tailcfg.PeerCapability
	// Index is the position of the grant among the values of that name, from 0.
	Index int
	// Err says what is wrong with it.
	Err error
}

// Error names the grant and what is wrong with it.
func (e *GrantError) Error() string {
	return fmt.Sprintf("value %d of the capability %q that the tailnet policy grants to the caller is malformed: %v", e.Index, string(e.Capability), e.Err)
}

// Unwrap returns the underlying error.
func (e *GrantError) Unwrap() error { return e.Err }

// ParseGrants reads the grants in caps, in order. The error is a [*GrantError]
// for the first one that is malformed; no grant is returned then.
func ParseGrants(caps tailcfg.PeerCapMap) ([]Grant, error) {
	name := Capability
	if len(caps[name]) == 0 {
		name = LegacyCapability
	}
	grants := make([]Grant, 0, len(caps[name]))
	for i, raw := range caps[name] {
		g, err := parseGrant([]byte(raw))
		if err != nil {
			return nil, &GrantError{Capability: name, Index: i, Err: err}
		}
		grants = append(grants, g)
	}
	return grants, nil
}

// parseGrant reads one grant. Unknown fields are allowed, so that a policy can
// carry what a newer version understands.
func parseGrant(raw []byte) (Grant, error) {
	var g Grant
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || raw[0] != '{' {
		return g, errors.New("it must be a JSON object")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if err := dec.Decode(&g); err != nil {
		return g, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return g, errors.New("there is something after the JSON object")
	}
	if g.Impersonate != nil {
		for i, group := range g.Impersonate.Groups {
			if err := carriable(group); err != nil {
				return g, fmt.Errorf("impersonate.groups[%d] %q %w", i, group, err)
			}
		}
	}
	return g, nil
}

// groupsOf returns the union of the groups of all grants, in first-seen order.
func groupsOf(grants []Grant) []string {
	var groups []string
	seen := map[string]bool{}
	for _, g := range grants {
		if g.Impersonate == nil {
			continue
		}
		for _, group := range g.Impersonate.Groups {
			if !seen[group] {
				seen[group] = true
				groups = append(groups, group)
			}
		}
	}
	return groups
}

// recordersOf returns the union of the recorders of all grants, in first-seen order.
func recordersOf(grants []Grant) []netip.AddrPort {
	var recorders []netip.AddrPort
	for _, g := range grants {
		for _, addr := range g.RecorderAddrs {
			if !slices.Contains(recorders, addr) {
				recorders = append(recorders, addr)
			}
		}
	}
	return recorders
}

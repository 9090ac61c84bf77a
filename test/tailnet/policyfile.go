// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/tailscale/hujson"
	"tailscale.com/tailcfg"
)

// Policy is the part of a tailnet's policy file that this package knows.
type Policy struct {
	// Groups are logins by the group's name, "group:x".
	Groups map[string][]string `json:"groups,omitempty"`
	// TagOwners are logins, groups and tags that may give a tag to devices.
	TagOwners map[string][]string `json:"tagOwners,omitempty"`
	Grants    []Grant             `json:"grants,omitempty"`
	// AutoApprovers say who may be a host of which Service without an
	// administrator's word; see [Tailnet.SetAutoApprovers] for nil.
	AutoApprovers *AutoApprovers `json:"autoApprovers,omitempty"`
}

// AutoApprovers are the part of a policy's autoApprovers that this package
// knows.
type AutoApprovers struct {
	// Services are tags of hosts, by a Service's name ("svc:x") or one of its
	// tags ("tag:x").
	Services map[string][]string `json:"services,omitempty"`
}

func (a *AutoApprovers) validate() error {
	if a == nil {
		return nil
	}
	for what, tags := range a.Services {
		if tailcfg.AsServiceName(what) == "" && tailcfg.CheckTag(what) != nil {
			return fmt.Errorf("autoApprovers: %q is neither a Service (svc:x) nor a tag (tag:x)", what)
		}
		for _, tag := range tags {
			if err := tailcfg.CheckTag(tag); err != nil {
				return fmt.Errorf("autoApprovers of %s: %q: %w", what, tag, err)
			}
		}
	}
	return nil
}

func (a *AutoApprovers) clone() *AutoApprovers {
	if a == nil {
		return nil
	}
	return &AutoApprovers{Services: cloneLists(a.Services)}
}

// ParsePolicy reads a policy file: JSON with comments and trailing commas.
// What this package does not know is an error, never ignored.
func ParsePolicy(file []byte) (Policy, error) {
	var p Policy
	standard, err := hujson.Standardize(bytes.Clone(file))
	if err != nil {
		return p, fmt.Errorf("policy: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(standard))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, fmt.Errorf("policy: %w", err)
	}
	return p, p.validate()
}

// SetPolicy replaces groups, tag owners, grants and automatic approvals at
// once.
func (t *Tailnet) SetPolicy(p Policy) error {
	if err := p.validate(); err != nil {
		return err
	}
	t.change(func() { t.policy = p.clone() })
	return nil
}

func (p Policy) validate() error {
	if err := validateGroups(p.Groups); err != nil {
		return err
	}
	if err := validateTagOwners(p.TagOwners); err != nil {
		return err
	}
	if err := p.AutoApprovers.validate(); err != nil {
		return err
	}
	for i, g := range p.Grants {
		if err := g.validate(); err != nil {
			return fmt.Errorf("grant %d: %w", i, err)
		}
		for _, s := range slices.Concat(g.Src, g.Dst) {
			if _, ok := p.Groups[s]; strings.HasPrefix(s, "group:") && !ok {
				return fmt.Errorf("grant %d: %s is not defined", i, s)
			}
		}
	}
	return nil
}

func (p Policy) clone() Policy {
	return Policy{
		Groups: cloneLists(p.Groups), TagOwners: cloneLists(p.TagOwners), Grants: slices.Clone(p.Grants),
		AutoApprovers: p.AutoApprovers.clone(),
	}
}

func cloneLists(m map[string][]string) map[string][]string {
	out := make(map[string][]string, len(m))
	for k, v := range m {
		out[k] = slices.Clone(v)
	}
	return out
}

func validateGroups(groups map[string][]string) error {
	for name := range groups {
		if !strings.HasPrefix(name, "group:") {
			return fmt.Errorf("group %q: its name does not begin with \"group:\"", name)
		}
	}
	return nil
}

func validateTagOwners(owners map[string][]string) error {
	for tag := range owners {
		if err := tailcfg.CheckTag(tag); err != nil {
			return fmt.Errorf("tag %q: %w", tag, err)
		}
	}
	return nil
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"

	"tailscale.com/tailcfg"
)

// recorderPort is where recorders listen.
const recorderPort = 80

// capabilitiesLocked are those of a grant as devices get them. A rule of
// tailscale.com/cap/kubernetes that names recorders by their tags gets the addresses of
// the devices with these tags besides, in its field recorderAddrs, as the control server
// fills it in. One that has the field already keeps it: a test says so what is there.
func (t *Tailnet) capabilitiesLocked(app tailcfg.PeerCapMap) tailcfg.PeerCapMap {
	rules := slices.Clone(app[tailcfg.PeerCapabilityKubernetes])
	if len(rules) == 0 {
		return app
	}
	for i, rule := range rules {
		rules[i] = t.addRecordersLocked(rule)
	}
	app = maps.Clone(app)
	app[tailcfg.PeerCapabilityKubernetes] = rules
	return app
}

// addRecordersLocked leaves what is no such rule as it is: devices are to see what the
// policy says.
func (t *Tailnet) addRecordersLocked(rule tailcfg.RawMessage) tailcfg.RawMessage {
	var fields map[string]json.RawMessage
	if json.Unmarshal([]byte(rule), &fields) != nil || fields["recorderAddrs"] != nil {
		return rule
	}
	var tags []string
	if json.Unmarshal(fields["recorder"], &tags) != nil {
		return rule
	}
	addrs := []netip.AddrPort{}
	for _, n := range t.sortedLocked() {
		if slices.ContainsFunc(tags, func(tag string) bool { return slices.Contains(n.identity.Tags, tag) }) {
			for _, a := range n.addrs {
				addrs = append(addrs, netip.AddrPortFrom(a.Addr(), recorderPort))
			}
		}
	}
	fields["recorderAddrs"] = encode(addrs)
	return tailcfg.RawMessage(encode(fields))
}

func encode(v any) json.RawMessage {
	value, err := json.Marshal(v)
	if err != nil {
		panic(err) // addresses, and what was decoded, always encode
	}
	return value
}

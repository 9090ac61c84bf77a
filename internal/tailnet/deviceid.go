// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import "tailscale.com/ipn"

// StoredDevice is the device whose state a Secret holds.
type StoredDevice struct {
	// ID is the stable ID, or "" when it has none yet.
	ID string
	// Hostname and Tags are what the device asked for.
	Hostname string
	Tags     []string
}

// DeviceOf returns the device whose state a Secret holds: by what it reports, and by its
// own profile.
func DeviceOf(state map[string][]byte) StoredDevice {
	d := StoredDevice{ID: string(state[FieldDeviceID])}
	profile := state[secretKey(ipn.CurrentProfileStateKey)]
	if len(profile) == 0 {
		return d
	}
	var prefs ipn.Prefs
	if err := ipn.PrefsFromBytes(state[secretKey(ipn.StateKey(profile))], &prefs); err != nil {
		return d
	}
	d.Hostname, d.Tags = prefs.Hostname, prefs.AdvertiseTags
	if d.ID == "" && prefs.Persist != nil {
		d.ID = string(prefs.Persist.NodeID)
	}
	return d
}

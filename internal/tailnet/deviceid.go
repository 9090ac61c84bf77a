// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import "tailscale.com/ipn"

// DeviceID returns the stable ID of the device whose state a Secret holds, or "" when
// it has none yet: by what a replica reports, or by the device's own profile.
func DeviceID(state map[string][]byte) string {
	if id := string(state[KeyDeviceID]); id != "" {
		return id
	}
	profile := state[secretKey(ipn.CurrentProfileStateKey)]
	if len(profile) == 0 {
		return ""
	}
	var prefs ipn.Prefs
	if err := ipn.PrefsFromBytes(state[secretKey(ipn.StateKey(profile))], &prefs); err != nil || prefs.Persist == nil {
		return ""
	}
	return string(prefs.Persist.NodeID)
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"net/http"
	"strconv"
	"time"

	tailscale "tailscale.com/client/tailscale/v2"
)

func (a *apiServer) listDevices(w http.ResponseWriter, r *http.Request) {
	for name := range r.URL.Query() {
		if name != "fields" {
			writeAPIError(w, http.StatusNotImplemented, "this tailnet knows no filter "+strconv.Quote(name))
			return
		}
	}
	a.t.mu.Lock()
	defer a.t.mu.Unlock()
	devices := []tailscale.Device{}
	for _, n := range a.t.sortedLocked() {
		devices = append(devices, a.t.apiDeviceLocked(n))
	}
	writeJSON(w, http.StatusOK, map[string]any{"devices": devices})
}

func (a *apiServer) getDevice(w http.ResponseWriter, r *http.Request) {
	a.t.mu.Lock()
	defer a.t.mu.Unlock()
	n := a.t.nodeByIDLocked(r.PathValue("id"))
	if n == nil {
		writeAPIError(w, http.StatusNotFound, "device not found")
		return
	}
	writeJSON(w, http.StatusOK, a.t.apiDeviceLocked(n))
}

func (a *apiServer) deleteDevice(w http.ResponseWriter, r *http.Request) {
	a.t.mu.Lock()
	defer a.t.mu.Unlock()
	n := a.t.nodeByIDLocked(r.PathValue("id"))
	if n == nil {
		writeAPIError(w, http.StatusNotFound, "device not found")
		return
	}
	a.t.removeLocked(n)
	a.t.bumpLocked()
	writeJSON(w, http.StatusOK, struct{}{})
}

// nodeByIDLocked finds a device by its stable id or its number.
func (t *Tailnet) nodeByIDLocked(id string) *node {
	for _, n := range t.nodes {
		if string(n.stableID()) == id || strconv.FormatInt(int64(n.id), 10) == id {
			return n
		}
	}
	return nil
}

// apiDeviceLocked is a device as the API shows it.
func (t *Tailnet) apiDeviceLocked(n *node) tailscale.Device {
	d := tailscale.Device{
		ID: strconv.FormatInt(int64(n.id), 10), NodeID: string(n.stableID()),
		Name: t.fqdn(n), Hostname: n.hostname, Authorized: true,
		Tags: n.identity.Tags, User: t.profileLocked(n.identity).LoginName,
		Created: tailscale.Time{Time: n.created.UTC()}, Expires: tailscale.Time{Time: n.expiry.UTC()},
		KeyExpiryDisabled: n.expiry.IsZero(), IsEphemeral: n.ephemeral,
		ConnectedToControl: n.stream != nil,
		MachineKey:         n.machine.String(), NodeKey: n.key.String(),
		OS: n.hostinfo.OS, ClientVersion: n.hostinfo.IPNVersion,
	}
	for _, a := range n.addrs {
		d.Addresses = append(d.Addresses, a.Addr().String())
	}
	if n.stream == nil {
		d.LastSeen = &tailscale.Time{Time: n.lastSeen.UTC().Truncate(time.Second)}
	}
	return d
}

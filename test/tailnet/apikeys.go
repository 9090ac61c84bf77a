// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"cmp"
	"encoding/json"
	"net/http"
	"time"

	tailscale "tailscale.com/client/tailscale/v2"
)

func (a *apiServer) createKey(w http.ResponseWriter, r *http.Request) {
	var req struct {
		KeyType string `json:"keyType"`
		tailscale.CreateKeyRequest
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&req); err != nil {
		writeAPIError(w, http.StatusBadRequest, "reading the request: "+err.Error())
		return
	}
	if req.KeyType != "" && req.KeyType != "auth" {
		writeAPIError(w, http.StatusNotImplemented, "this tailnet makes auth keys only")
		return
	}
	caps := req.Capabilities.Devices.Create
	if len(caps.Tags) == 0 {
		writeAPIError(w, http.StatusBadRequest, "tailnet-owned auth key must have tags set")
		return
	}
	if !a.t.mayTag(caller(r), caps.Tags) {
		writeAPIError(w, http.StatusBadRequest, errTags(caps.Tags).Error())
		return
	}
	life := cmp.Or(time.Duration(req.ExpirySeconds)*time.Second, defaultKeyLife)
	k := a.t.keys.create(authKey{
		description: req.Description, identity: Identity{Tags: caps.Tags}.clean(),
		singleUse: !caps.Reusable, ephemeral: caps.Ephemeral, preauthorized: caps.Preauthorized,
		expires: time.Now().Add(life),
	})
	out := apiKey(k)
	out.Key = k.secret // shown this once
	writeJSON(w, http.StatusOK, out)
}

func (a *apiServer) listKeys(w http.ResponseWriter, _ *http.Request) {
	now := time.Now()
	keys := []tailscale.Key{}
	for _, k := range a.t.keys.list() {
		if k.valid(now) {
			keys = append(keys, apiKey(k))
		}
	}
	writeJSON(w, http.StatusOK, map[string]any{"keys": keys})
}

func (a *apiServer) getKey(w http.ResponseWriter, r *http.Request) {
	k := a.t.keys.byID(r.PathValue("id"))
	if k == nil {
		writeAPIError(w, http.StatusNotFound, "key not found")
		return
	}
	writeJSON(w, http.StatusOK, apiKey(*k))
}

func (a *apiServer) deleteKey(w http.ResponseWriter, r *http.Request) {
	if !a.t.keys.revoke(r.PathValue("id")) {
		writeAPIError(w, http.StatusNotFound, "key not found")
		return
	}
	writeJSON(w, http.StatusOK, struct{}{})
}

// apiKey is a key as the API shows it.
func apiKey(k authKey) tailscale.Key {
	seconds := time.Duration(k.expires.Sub(k.created).Round(time.Second).Seconds()) // the field counts seconds
	out := tailscale.Key{
		ID: k.id, KeyType: "auth", Description: k.description, ExpirySeconds: &seconds,
		Created: k.created, Expires: k.expires, Revoked: k.revoked, Invalid: !k.valid(time.Now()),
	}
	create := &out.Capabilities.Devices.Create
	create.Reusable, create.Ephemeral, create.Preauthorized = !k.singleUse, k.ephemeral, k.preauthorized
	create.Tags = k.identity.Tags
	return out
}

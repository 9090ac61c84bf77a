// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"encoding/json"
	"fmt"
	"net/http"

	tailscale "tailscale.com/client/tailscale/v2"
)

func (a *apiServer) listServices(w http.ResponseWriter, _ *http.Request) {
	a.t.mu.Lock()
	defer a.t.mu.Unlock()
	services := []tailscale.VIPService{}
	for _, s := range a.t.sortedServicesLocked() {
		services = append(services, s.spec)
	}
	writeJSON(w, http.StatusOK, map[string]any{"vipServices": services})
}

func (a *apiServer) getService(w http.ResponseWriter, r *http.Request) {
	a.t.mu.Lock()
	defer a.t.mu.Unlock()
	for _, s := range a.t.services {
		if s.spec.Name == r.PathValue("name") {
			writeJSON(w, http.StatusOK, s.spec)
			return
		}
	}
	writeAPIError(w, http.StatusNotFound, errNoService.Error())
}

func (a *apiServer) putService(w http.ResponseWriter, r *http.Request) {
	var req tailscale.VIPService
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&req); err != nil {
		writeAPIError(w, http.StatusBadRequest, "reading the request: "+err.Error())
		return
	}
	if name := r.PathValue("name"); req.Name != name {
		writeAPIError(w, http.StatusBadRequest, fmt.Sprintf("name %q is not that of the request's path, %q", req.Name, name))
		return
	}
	if len(req.Tags) > 0 && !a.t.mayTag(caller(r), req.Tags) {
		writeAPIError(w, http.StatusBadRequest, errTags(req.Tags).Error())
		return
	}
	a.t.mu.Lock()
	defer a.t.mu.Unlock()
	s, err := a.t.setServiceLocked(req)
	if err != nil {
		writeAPIError(w, http.StatusBadRequest, err.Error())
		return
	}
	writeJSON(w, http.StatusOK, s.spec)
}

func (a *apiServer) deleteService(w http.ResponseWriter, r *http.Request) {
	a.t.mu.Lock()
	defer a.t.mu.Unlock()
	if err := a.t.deleteServiceLocked(r.PathValue("name")); err != nil {
		writeAPIError(w, http.StatusNotFound, err.Error())
		return
	}
	writeJSON(w, http.StatusOK, struct{}{})
}

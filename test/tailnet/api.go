// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import "net/http"

// apiServer is the Tailscale HTTP API.
type apiServer struct {
	t   *Tailnet
	mux *http.ServeMux
}

func newAPIServer(t *Tailnet) *apiServer {
	return &apiServer{t: t, mux: http.NewServeMux()}
}

// ServeHTTP implements [http.Handler].
func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// writeAPIError answers in the form that the API's clients expect.
func writeAPIError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, map[string]string{"message": message})
}

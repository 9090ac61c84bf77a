// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"net/http"
	"strings"
)

// apiServer is the part of the Tailscale HTTP API that this project calls.
type apiServer struct {
	t       *Tailnet
	clients *clientStore
	mux     *http.ServeMux
}

func newAPIServer(t *Tailnet) *apiServer {
	a := &apiServer{t: t, clients: newClientStore(), mux: http.NewServeMux()}
	a.mux.HandleFunc("POST /api/v2/oauth/token", a.serveToken)
	a.mux.HandleFunc("POST /api/v2/oauth/token-exchange", a.serveTokenExchange)
	a.handle("POST /api/v2/tailnet/{tailnet}/keys", a.createKey)
	a.handle("GET /api/v2/tailnet/{tailnet}/keys", a.listKeys)
	a.handle("GET /api/v2/tailnet/{tailnet}/keys/{id}", a.getKey)
	a.handle("DELETE /api/v2/tailnet/{tailnet}/keys/{id}", a.deleteKey)
	a.handle("GET /api/v2/tailnet/{tailnet}/devices", a.listDevices)
	a.handle("GET /api/v2/tailnet/{tailnet}/vip-services", a.listServices)
	a.handle("GET /api/v2/tailnet/{tailnet}/vip-services/{name}", a.getService)
	a.handle("PUT /api/v2/tailnet/{tailnet}/vip-services/{name}", a.putService)
	a.handle("DELETE /api/v2/tailnet/{tailnet}/vip-services/{name}", a.deleteService)
	a.handle("GET /api/v2/device/{id}", a.getDevice)
	a.handle("DELETE /api/v2/device/{id}", a.deleteDevice)
	a.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { writeAPIError(w, http.StatusNotFound, "not found") })
	return a
}

// ServeHTTP implements [http.Handler].
func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

type callerKey struct{} // context key of the *oauthClient that calls

func caller(r *http.Request) *oauthClient {
	c, _ := r.Context().Value(callerKey{}).(*oauthClient)
	return c
}

// handle serves a pattern to callers with an access token.
func (a *apiServer) handle(pattern string, h http.HandlerFunc) {
	a.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		client := a.clients.byToken(accessToken(r))
		if client == nil {
			writeAPIError(w, http.StatusUnauthorized, "API token invalid")
			return
		}
		if name := r.PathValue("tailnet"); name != "" && name != "-" && name != a.t.opts.Domain {
			writeAPIError(w, http.StatusNotFound, "tailnet not found")
			return
		}
		h(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, client)))
	})
}

// accessToken is a bearer token, or the user name of basic authentication.
func accessToken(r *http.Request) string {
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return token
	}
	user, _, _ := r.BasicAuth()
	return user
}

// writeAPIError answers in the form that the API's clients expect.
func writeAPIError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, map[string]string{"message": message})
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"net/http"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
)

const (
	// headerAuditID has the ID of a request in the audit log. The API server takes it over
	// from the request, and makes one up only for a request without.
	headerAuditID      = "Audit-Id"
	headerForwardedFor = "X-Forwarded-For"
	// headerRefused tells an answer of the proxy itself, with the reason, from one of the API
	// server.
	headerRefused     = "Tailhelm-Refused"
	headerSubprotocol = "Sec-Websocket-Protocol"
	// bearerSubprotocol begins the WebSocket subprotocol in which browsers send a
	// token (k8s.io/apiserver/pkg/authentication/request/websocket).
	bearerSubprotocol = "base64url.bearer.authorization.k8s.io." //nolint:gosec // a prefix, not a token
	impersonatePrefix = "impersonate-"
)

// claimsByProxies are how the headers begin with which a proxy tells a server who
// is calling. This proxy is the only one on the way, so a client that sends them
// lies.
var claimsByProxies = []string{"x-remote-", "tailscale-", "forwarded", "x-forwarded-", "x-real-ip"}

// dropProxyClaims removes headers in which a client claims to be a proxy.
func dropProxyClaims(h http.Header) {
	for name := range h {
		if slices.ContainsFunc(claimsByProxies, func(prefix string) bool { return hasPrefix(name, prefix) }) {
			delete(h, name)
		}
	}
}

// dropCredentials removes everything with which the client could authenticate to
// the API server as somebody else than the caller.
func dropCredentials(h http.Header) {
	for name := range h {
		if isCredential(name) || isImpersonation(name) {
			delete(h, name)
		}
	}
	dropBearerSubprotocols(h)
}

// isCredential reports whether a header carries a token or password for the API
// server.
func isCredential(name string) bool { return strings.EqualFold(name, "Authorization") }

// dropBearerSubprotocols removes tokens from the lists of WebSocket subprotocols.
func dropBearerSubprotocols(h http.Header) {
	for name, values := range h {
		if !strings.EqualFold(name, headerSubprotocol) {
			continue
		}
		if kept := withoutBearers(values); len(kept) > 0 {
			h[name] = []string{strings.Join(kept, ", ")}
		} else {
			delete(h, name)
		}
	}
}

// withoutBearers returns the subprotocols in lists that are no tokens.
func withoutBearers(lists []string) []string {
	return slices.DeleteFunc(subprotocolsOf(lists), func(protocol string) bool { return hasPrefix(protocol, bearerSubprotocol) })
}

// subprotocolsOf returns the subprotocols in lists.
func subprotocolsOf(lists []string) []string {
	var all []string
	for _, list := range lists {
		for protocol := range strings.SplitSeq(list, ",") {
			if protocol = strings.TrimSpace(protocol); protocol != "" {
				all = append(all, protocol)
			}
		}
	}
	return all
}

// isImpersonation reports whether a header asks for impersonation. The prefix
// decides, so that headers of later Kubernetes versions count too.
func isImpersonation(name string) bool { return hasPrefix(name, impersonatePrefix) }

// hasPrefix is strings.HasPrefix for names in which capitals do not count.
func hasPrefix(name, prefix string) bool {
	return len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix)
}

// auditIDOf returns the ID under which the log of this proxy and the audit log of the API
// server have a request with header h. In ModeAuth it is a new one: a client that chose it
// could hide what it does behind a request of somebody else. In ModeNoAuth clients may
// choose, as they may without the proxy.
func auditIDOf(mode Mode, h http.Header) string {
	if id := h.Get(headerAuditID); id != "" && mode == ModeNoAuth {
		return id
	}
	return string(uuid.NewUUID())
}

// impersonate makes h say that a user is calling, in groups.
func impersonate(h http.Header, user string, groups []string) {
	h[authenticationv1.ImpersonateUserHeader] = []string{user}
	if len(groups) > 0 {
		h[authenticationv1.ImpersonateGroupHeader] = groups
	}
}

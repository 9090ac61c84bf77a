// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// In auth mode a caller is known by its device alone, so a browser on that device
// is the caller, too, whichever web page it shows. These checks keep pages of
// other sites from acting as the caller. Programs send neither Sec-Fetch-Site nor
// Origin, and are not affected.

// crossOrigin tells requests that a page of another site makes: by Sec-Fetch-Site,
// and for older browsers by Origin.
var crossOrigin = http.NewCrossOriginProtection()

// checkOrigin refuses requests that could change something, or open a stream, and
// come from a page of another site. What such a page reads with other requests,
// the browser keeps from it.
func checkOrigin(r *http.Request) *refusal {
	unsafe := r
	if isUpgrade(r) {
		// Browsers let any page open a WebSocket and read it, although its method is
		// the safe GET.
		clone := *r
		clone.Method = http.MethodPost
		unsafe = &clone
	}
	if err := crossOrigin.Check(unsafe); err != nil {
		return refuseForbidden(reasonCrossOrigin, "A web page of another site made this request. Only pages that the proxy itself serves, and programs, may use it.", err)
	}
	return nil
}

// checkHost refuses plain HTTP under a name that is not the device's: a site whose
// name is made to point at the device's address would be of the same origin to
// a browser. With TLS the certificate sees to that. name is the device's FQDN.
func checkHost(r *http.Request, name string) *refusal {
	if r.TLS != nil {
		return nil
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	short, _, _ := strings.Cut(name, ".")
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil || (name != "" && (host == name || host == short)) {
		return nil
	}
	return refuseForbidden(reasonCrossOrigin, fmt.Sprintf("The name %q is not this device's. Use %s or its tailnet address as the server of the kubeconfig.", host, name), nil)
}

// isolate keeps a page among the answers, such as one that a pod serves through
// the proxy subresource, from being of the same origin as the API: a browser runs
// no script of it and lets it ask for nothing as the caller. Clients with a
// kubeconfig send its token, even if it is "unused", so pages seen through
// "kubectl proxy" are not affected.
func isolate(h http.Header) { h.Add("Content-Security-Policy", "sandbox") }

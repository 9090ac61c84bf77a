// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"k8s.io/client-go/rest"
)

const (
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 10 * time.Second
	// idleTimeout is below the 3 minutes after which kube-apiserver closes an idle
	// connection, so that the proxy never sends into a closing one.
	idleTimeout = 90 * time.Second
	// An HTTP/2 connection that is silent for pingAfter is asked for a sign of life
	// and given up pingTimeout later: client-go's defaults.
	pingAfter   = 30 * time.Second
	pingTimeout = 15 * time.Second
	// idleConnections is how many connections to the API server are kept for reuse.
	idleConnections = 256
	// streamBuffer is how much of an answer is held for a client that does not read
	// it. It is also the HTTP/2 window, so it must hold what is under way to a near
	// API server.
	streamBuffer = 256 << 10
	// maxAnswerHeader bounds the header of an answer, which is held until the client reads it.
	// What runs in a pod may write it, through the API server.
	maxAnswerHeader = 64 << 10
	// maxVersion is more than the API server has to say of its version.
	maxVersion = 64 << 10
)

// upstream is the way to the API server: an HTTP/2 transport for ordinary
// requests and an HTTP/1.1 one for upgrades, with credentials or without.
type upstream struct {
	target   *url.URL
	requests http.RoundTripper
	upgrades http.RoundTripper
	// check is for Proxy.CheckReachable: see askVersion.
	check func(context.Context) error
	// transports are those below requests and upgrades.
	transports []*rotatingTransport
}

// close closes the connections over which nothing goes on.
func (u *upstream) close() {
	for _, t := range u.transports {
		t.CloseIdleConnections()
	}
}

// newUpstream returns the way to the API server of c.Upstream. Its transports carry the
// credentials of c.Upstream in ModeAuth and none in ModeNoAuth. c.Upstream is not changed.
func newUpstream(c Config) (*upstream, error) {
	mode, config := c.Mode, rest.CopyConfig(c.Upstream)
	if as := config.Impersonate; as.UserName != "" || as.UID != "" || len(as.Groups) > 0 || len(as.Extra) > 0 {
		return nil, fmt.Errorf("the Kubernetes client configuration impersonates %q itself: remove \"as\", \"as-uid\", \"as-groups\" and \"as-user-extra\" from its user", as.UserName)
	}
	if mode == ModeNoAuth {
		config = rest.AnonymousClientConfig(config)
	}
	// The client names itself; the proxy does not.
	config.UserAgent = ""
	target, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("the address of the Kubernetes API server %q: %w", config.Host, err)
	}
	u := &upstream{target: target}
	for _, http2 := range []bool{true, false} {
		t, err := newRotatingTransport(config, http2, c.Log)
		if err != nil {
			return nil, fmt.Errorf("TLS to the Kubernetes API server %s: %w", config.Host, err)
		}
		u.transports = append(u.transports, t)
	}
	h2, h1 := u.transports[0], u.transports[1]
	// Not over a connection that requests share: the API server closes those on which
	// somebody without credentials asked.
	u.check = askVersion(mode, h1, target)
	for _, leg := range []struct {
		out  *http.RoundTripper
		base http.RoundTripper
	}{{&u.requests, h2}, {&u.upgrades, h1}} {
		rt, err := rest.HTTPWrappersForConfig(config, leg.base)
		if err != nil {
			return nil, fmt.Errorf("credentials for the Kubernetes API server %s: %w", config.Host, err)
		}
		if mode == ModeAuth {
			if leg.base == h2 {
				u.check = askVersion(mode, rt, target)
			}
			rt = &impersonationGuard{next: rt, refused: c.RefusedGroups}
		}
		*leg.out = &recordingGuard{next: rt}
	}
	return u, nil
}

// newTransport returns a transport to the API server that speaks HTTP/2, or only
// HTTP/1.1, because upgrades exist in HTTP/1.1 alone.
func newTransport(config *rest.Config, tlsConfig *tls.Config, http2 bool) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(http2)
	t := &http.Transport{
		Proxy:                 config.Proxy,
		DialContext:           config.Dial,
		TLSHandshakeTimeout:   handshakeTimeout,
		IdleConnTimeout:       idleTimeout,
		MaxIdleConnsPerHost:   idleConnections,
		ExpectContinueTimeout: time.Second,
		// Both protocols keep to it.
		MaxResponseHeaderBytes: maxAnswerHeader,
		// What the client accepts is between it and the API server.
		DisableCompression: true,
		Protocols:          protocols,
		HTTP2:              &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout, MaxReceiveBufferPerStream: streamBuffer},
	}
	// A connection that was meant for one caller's stream is no other caller's.
	t.DisableKeepAlives = !http2
	if t.Proxy == nil {
		t.Proxy = http.ProxyFromEnvironment
	}
	if t.DialContext == nil {
		t.DialContext = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	if tlsConfig != nil {
		t.TLSClientConfig = tlsConfig.Clone()
		t.TLSClientConfig.NextProtos = nil // from Protocols
	}
	return t
}

// RoundTrip sends r over the transport that fits it.
func (u *upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	if isUpgrade(r) {
		return u.upgrades.RoundTrip(r)
	}
	return u.requests.RoundTrip(r)
}

// askVersion returns a function that asks for the API server's version, as the proxy
// itself, which is harmless.
func askVersion(mode Mode, rt http.RoundTripper, target *url.URL) func(context.Context) error {
	return func(ctx context.Context) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, target.JoinPath("version").String(), nil)
		if err != nil {
			return err
		}
		res, err := rt.RoundTrip(r)
		if err != nil {
			return fmt.Errorf("the API server at %s cannot be reached: %w", target, err)
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, maxVersion)) // or HTTP/1.1 would not keep the connection
		_ = res.Body.Close()
		switch {
		case res.StatusCode >= http.StatusInternalServerError:
			return fmt.Errorf("the API server at %s answers %s", target, res.Status)
		case res.StatusCode == http.StatusUnauthorized && mode == ModeAuth:
			return fmt.Errorf("the API server at %s does not accept the credentials with which the proxy impersonates: %s", target, res.Status)
		}
		return nil
	}
}

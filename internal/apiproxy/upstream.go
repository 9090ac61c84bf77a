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
	// maxAnswerHeader bounds the header of an answer that a pod, a Service or a node may have
	// written. It is held until the client reads it.
	maxAnswerHeader = 64 << 10
	// maxVersion is more than the API server has to say of its version.
	maxVersion = 64 << 10
)

// leg is one of the ways to the API server. They differ in who shares a connection.
type leg int

const (
	// legShared is for what the API server answers: all callers share connections, over HTTP/2.
	legShared leg = iota
	// legOwn is for requests that have a connection each, over HTTP/1.1: upgrades, which exist
	// there alone, and what pods, Services and nodes answer through the API server. Their
	// answers may break a connection (HTTP/2 ends it for a header that is too long), and with
	// it every request that shares it.
	legOwn
	legCount
)

// legOf returns the way that r takes.
func legOf(r *http.Request) leg {
	if c := callFrom(r.Context()); isUpgrade(r) || c != nil && c.info != nil && c.info.Subresource == "proxy" {
		return legOwn
	}
	return legShared
}

// upstream is the way to the API server, with credentials or without.
type upstream struct {
	target *url.URL
	legs   [legCount]http.RoundTripper
	// check is for Proxy.CheckReachable: see askVersion.
	check func(context.Context) error
	// transports are those below legs.
	transports [legCount]*rotatingTransport
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
	for way := range legCount {
		t, err := newRotatingTransport(config, way, c.Log)
		if err != nil {
			return nil, fmt.Errorf("TLS to the Kubernetes API server %s: %w", config.Host, err)
		}
		rt, err := rest.HTTPWrappersForConfig(config, t)
		if err != nil {
			return nil, fmt.Errorf("credentials for the Kubernetes API server %s: %w", config.Host, err)
		}
		// In ModeNoAuth not over a connection that requests share: the API server closes those
		// on which somebody without credentials asked.
		if mode == ModeAuth && way == legShared || mode == ModeNoAuth && way == legOwn {
			u.check = askVersion(mode, rt, target)
		}
		if mode == ModeAuth {
			rt = &impersonationGuard{next: rt, refused: c.RefusedGroups}
		}
		u.transports[way], u.legs[way] = t, &recordingGuard{next: rt}
	}
	return u, nil
}

// newTransport returns a transport to the API server for one leg.
func newTransport(config *rest.Config, tlsConfig *tls.Config, way leg) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(way == legShared)
	t := &http.Transport{
		Proxy:                 config.Proxy,
		DialContext:           config.Dial,
		TLSHandshakeTimeout:   handshakeTimeout,
		IdleConnTimeout:       idleTimeout,
		MaxIdleConnsPerHost:   idleConnections,
		ExpectContinueTimeout: time.Second,
		// What the client accepts is between it and the API server.
		DisableCompression: true,
		Protocols:          protocols,
		HTTP2:              &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout, MaxReceiveBufferPerStream: streamBuffer},
	}
	if way == legOwn {
		t.DisableKeepAlives, t.MaxResponseHeaderBytes = true, maxAnswerHeader
	}
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

// RoundTrip sends r over the leg that fits it.
func (u *upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	return u.legs[legOf(r)].RoundTrip(r)
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

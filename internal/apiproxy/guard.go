// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"errors"
	"fmt"
	"net/http"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
)

// errNotImpersonated means that a request without the identity of its caller was
// about to be sent with the proxy's credentials.
var errNotImpersonated = errors.New("the request does not impersonate its caller")

// impersonationGuard is the last thing before the proxy's credentials. A request
// passes only if its context carries a caller (see withCall) and its headers
// impersonate exactly that caller, in groups that are all its own, none of which is
// refused, and bring no other credentials. No request of a client can get to the
// credentials in auth mode except through it. Others are made with them by two functions,
// which make no more than these: upstream.check, and [CheckImpersonator].
type impersonationGuard struct {
	next    http.RoundTripper
	refused []string
}

// RoundTrip refuses with an error that wraps errNotImpersonated.
func (g *impersonationGuard) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := g.check(r); err != nil {
		closeBody(r)
		return nil, fmt.Errorf("%w: %w", errNotImpersonated, err)
	}
	return g.next.RoundTrip(r)
}

func (g *impersonationGuard) check(r *http.Request) error {
	c := callFrom(r.Context())
	if c == nil || c.caller.User == "" {
		return errors.New("no caller is known")
	}
	if !slices.Equal(r.Header[authenticationv1.ImpersonateUserHeader], []string{c.caller.User}) {
		return fmt.Errorf("its user is not %q", c.caller.User)
	}
	if !slices.Equal(r.Header[authenticationv1.ImpersonateGroupHeader], c.groups) {
		return fmt.Errorf("its groups are not those that %q asks for", c.caller.User)
	}
	for _, group := range c.groups {
		if !slices.Contains(c.caller.Groups, group) {
			return fmt.Errorf("its group %q is none of those of %q", group, c.caller.User)
		}
	}
	for _, group := range g.refused {
		if slices.Contains(c.caller.Groups, group) {
			return fmt.Errorf("it is of the group %q, which nobody may be in", group)
		}
	}
	for name := range r.Header {
		if isCredential(name) || isImpersonation(name) && name != authenticationv1.ImpersonateUserHeader && name != authenticationv1.ImpersonateGroupHeader {
			return fmt.Errorf("it has the header %s", name)
		}
	}
	return nil
}

// errNotRecorded means that a session that must be recorded was about to begin, and no
// recorder had taken it.
var errNotRecorded = errors.New("the session must be recorded and is not")

// recordingGuard is what every request passes on its way to the API server, in both modes
// and whatever protocol it takes. It stops a session whose caller must be recorded unless
// a recorder has taken it, and a request of which it is not known who asks for what.
type recordingGuard struct{ next http.RoundTripper }

// RoundTrip refuses with an error that wraps errNotRecorded.
func (g *recordingGuard) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := checkRecorded(callFrom(r.Context())); err != nil {
		closeBody(r)
		return nil, err
	}
	return g.next.RoundTrip(r)
}

func checkRecorded(c *call) error {
	switch {
	case c == nil || c.info == nil:
		return fmt.Errorf("%w: nobody knows who asks for what", errNotRecorded)
	case c.caller.MustRecord && c.isSession() && (c.recording == nil || c.recording.to == nil):
		return fmt.Errorf("%w: %s of %s/%s", errNotRecorded, c.info.Subresource, c.info.Namespace, c.info.Name)
	}
	return nil
}

// closeBody closes the body of a request that is not sent, which is the contract of
// http.RoundTripper.
func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close()
	}
}

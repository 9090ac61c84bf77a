// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"
	tailscale "tailscale.com/client/tailscale/v2"
)

// Kind says what an error means for the caller.
type Kind string

// Kinds of errors.
const (
	KindCredentials Kind = "Unauthorized" // credentials are missing, wrong or revoked
	KindForbidden   Kind = "Forbidden"    // credentials lack a scope
	KindRateLimited Kind = "RateLimited"  // too many requests
	KindNotFound    Kind = "NotFound"     // there is no such thing, says the API itself
	KindInvalid     Kind = "Refused"      // the request can never succeed as it is
	KindUnavailable Kind = "Unavailable"  // the API is away or failed
)

// Scopes that calls need.
const (
	scopeKeys     = "auth_keys"
	scopeDevices  = "devices:core"
	scopeServices = "services"
)

// Error is a call that failed.
type Error struct {
	// Action is what was attempted: "reading Tailscale Service svc:kube".
	Action string
	// Kind is what the error means.
	Kind Kind
	// RetryAfter is how long the API asked to wait; 0 when it did not say.
	RetryAfter time.Duration
	// Hint is what a person can do about it, or "".
	Hint string
	// Err is what the client library returned.
	Err error
}

// Error is one sentence, with the hint in brackets.
func (e *Error) Error() string {
	if e.Hint == "" {
		return fmt.Sprintf("%s: %v", e.Action, e.Err)
	}
	return fmt.Sprintf("%s: %v (%s)", e.Action, e.Err, e.Hint)
}

// Unwrap returns the library's error.
func (e *Error) Unwrap() error { return e.Err }

// IsNotFound reports whether the API said that there is no such thing.
func IsNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == KindNotFound
}

func ignoreNotFound(err error) error {
	if IsNotFound(err) {
		return nil
	}
	return err
}

// newError says what err means. seen is the last answer, if there was one.
func newError(action, scope string, seen answer, err error) *Error {
	status, token := statusOf(seen, err)
	e := &Error{Action: action, Kind: kindOf(status, token, err), RetryAfter: seen.retryAfter, Err: shorten(seen, err)}
	var retrieve *oauth2.RetrieveError
	if errors.As(err, &retrieve) {
		e.RetryAfter = retryAfter(retrieve.Response.Header.Get("Retry-After"), time.Now())
	}
	switch {
	case e.Kind == KindCredentials:
		e.Hint = "check the ID and secret of the OAuth client, or the workload identity, and that it was not revoked"
	case strings.Contains(err.Error(), "tags") && (e.Kind == KindInvalid || e.Kind == KindForbidden):
		e.Hint = "the OAuth client must own all of these tags: give it exactly these, or tags that own them under tagOwners in the tailnet policy"
	case e.Kind == KindForbidden:
		e.Hint = "the OAuth client needs the write scope " + scope
	case e.Kind == KindNotFound:
		e.Hint = noSuchAPI
	case e.Kind == KindRateLimited:
		e.Hint = "tried again when the API allows it"
	case status == http.StatusNotFound:
		e.Hint = "tried again until the API answers: this was something in front of it, or " + noSuchAPI
	case e.Kind == KindUnavailable:
		e.Hint = "tried again until the API answers"
	}
	return e
}

const noSuchAPI = "the control server has no such API: groups need Tailscale's, or one with Tailscale Services"

// exchangeFailed finds the status in the library's error about the exchange of a workload
// identity's token, which has it in its text alone.
var exchangeFailed = regexp.MustCompile(`token exchange failed with status (\d{3})`)

// statusOf returns the status of the answer that err is about, or 0, and whether that
// answered a request for an access token. An answer that the library cannot read is known by
// seen only.
func statusOf(seen answer, err error) (status int, token bool) {
	var api tailscale.APIError
	var retrieve *oauth2.RetrieveError
	switch {
	case errors.As(err, &api):
		return api.Status, false
	case errors.As(err, &retrieve):
		return retrieve.Response.StatusCode, true
	}
	if m := exchangeFailed.FindStringSubmatch(err.Error()); m != nil {
		status, err := strconv.Atoi(m[1])
		return status, err == nil
	}
	return seen.status, false
}

// kindOf tells what an error means; status and token are those of statusOf.
func kindOf(status int, token bool, err error) Kind {
	switch {
	case saysNotFound(err):
		return KindNotFound
	case status == http.StatusTooManyRequests:
		return KindRateLimited
	case status == http.StatusNotFound, status == http.StatusRequestTimeout:
		return KindUnavailable // whoever answered, it does not know whether there is such a thing
	case status == http.StatusUnauthorized, token && status >= 400 && status < 500, status == 0 && strings.Contains(err.Error(), "ID token"):
		return KindCredentials
	case status == http.StatusForbidden:
		return KindForbidden
	case status >= 400 && status < 500:
		return KindInvalid
	}
	return KindUnavailable
}

// saysNotFound reports whether the API itself says that there is no such thing. A page of
// something in front of it, or an endpoint for tokens that is not there, must not count:
// what is said to be gone is forgotten, and would stay in the tailnet. The API's own errors
// have a message.
func saysNotFound(err error) bool {
	var api tailscale.APIError
	return errors.As(err, &api) && api.Status == http.StatusNotFound && api.Message != ""
}

// shorten returns an error that a person can read in place of one about JSON or
// contexts.
func shorten(seen answer, err error) error {
	var api tailscale.APIError
	switch {
	case errors.As(err, &api) && api.Message != "":
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the Tailscale API did not answer within %v: %w", timeout, err)
	case seen.status >= 400:
		return fmt.Errorf("the Tailscale API answered %d %s: %w", seen.status, http.StatusText(seen.status), err)
	}
	return err
}

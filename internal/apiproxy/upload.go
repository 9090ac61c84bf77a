// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"io"
	"net/http"
	"strings"
)

// uploadError is an error of reading a request's body from the client. Transports return
// it as if it were one of reaching the API server.
type uploadError struct {
	cause error
	// gone means that the client has left. Otherwise it has sent what is no body. Over
	// HTTP/1.1, net/http ends the context of a request before its body when the client
	// leaves; over HTTP/2 after it.
	gone bool
}

// Error returns what the cause says.
func (e *uploadError) Error() string { return "reading the request's body: " + e.cause.Error() }

// Unwrap returns the cause.
func (e *uploadError) Unwrap() error { return e.cause }

// markUpload makes errors of reading the body of r uploadErrors.
func markUpload(r *http.Request) {
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = &upload{ReadCloser: r.Body, http2: r.ProtoMajor >= 2}
	}
}

type upload struct {
	io.ReadCloser
	http2 bool
}

// Read returns an uploadError for any error except io.EOF.
func (u *upload) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = &uploadError{cause: err, gone: u.http2}
	}
	return n, err
}

// asksForNoProtocol reports whether r asks for an upgrade to something that can be no
// name of a protocol. The reverse proxy sends no such request.
func asksForNoProtocol(r *http.Request) bool {
	return isUpgrade(r) && strings.ContainsFunc(r.Header.Get("Upgrade"), func(c rune) bool { return c < ' ' || c > '~' })
}

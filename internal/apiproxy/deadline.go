// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"net/http"
	"time"

	"github.com/tailhelm/tailhelm/internal/limit"
)

const (
	// farewell is how long a client may take to read the end of an answer: after its call
	// was ended, or when the handler is done with it.
	farewell = 5 * time.Second
	// lastUpload is how long a client may take then to send the rest of a body that nobody
	// wants. net/http reads it before it sends the answer, so it must leave time for that.
	lastUpload = 3 * time.Second
)

// boundClient keeps a client that does not read, or does not send the body that it has
// announced, from holding the call of r beyond its end. When ctx is done, a write that waits
// for the client fails after farewell, and a read after lastUpload; so does what net/http
// does with the rest of answer and body when the handler returns, to which end, the
// function that boundClient returns, must be deferred.
func boundClient(ctx context.Context, w http.ResponseWriter, r *http.Request) (end func()) {
	called := make(chan struct{})
	bound := func() {
		// A connection that was taken over for a stream has no such deadline; it is
		// closed when ctx is done.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(farewell))
		limit.Upload(w, r, lastUpload)
	}
	stop := context.AfterFunc(ctx, func() {
		defer close(called)
		bound()
	})
	return func() {
		if !stop() {
			<-called // net/http does not allow the call after the handler's return
		}
		bound()
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"net/http"
	"time"
)

// farewell is how long a client may take to read the end of an answer: after its
// call was ended, or when the handler is done with it.
const farewell = 5 * time.Second

// boundWrites keeps a client that does not read from holding a call beyond its
// end. When ctx is done, a write that waits for the client fails after farewell; so
// does the flush of what is left when the handler returns, to which end, the
// function that boundWrites returns, must be deferred.
func boundWrites(ctx context.Context, w http.ResponseWriter) (end func()) {
	response, called := http.NewResponseController(w), make(chan struct{})
	// A connection that was taken over for a stream has no such deadline; it is
	// closed when ctx is done.
	limit := func() { _ = response.SetWriteDeadline(time.Now().Add(farewell)) }
	stop := context.AfterFunc(ctx, func() {
		defer close(called)
		limit()
	})
	return func() {
		if !stop() {
			<-called // net/http does not allow the call after the handler's return
		}
		limit()
	}
}

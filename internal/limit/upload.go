// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"net/http"
	"time"
)

// Upload lets reading the rest of r's body fail after d. It is for bodies that nobody wants:
// net/http reads a part of them to use the connection again, however long the client takes.
func Upload(w http.ResponseWriter, r *http.Request, d time.Duration) {
	// Without a body, net/http reads ahead to see whether the client goes away. A deadline
	// would look as if it had.
	if r.ContentLength != 0 {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(d))
	}
}

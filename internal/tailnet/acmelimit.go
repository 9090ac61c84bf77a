// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"cmp"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"tailscale.com/client/local"
)

// acmeClient is part of the User-Agent of every request that Tailscale's ACME client makes.
const acmeClient = "golang.org/x/crypto/acme"

// reportACMELimits makes Tailscale's ACME client report limits of the certificate authority
// at once. By itself it waits for as long as the authority says, or asks again every ten
// seconds when that says nothing, until the order's time is over: nobody would hear of the
// limit, and the order would begin anew. The client has no setting for that, and uses the
// default HTTP client of the process.
var reportACMELimits = sync.OnceFunc(func() {
	http.DefaultClient.Transport = acmeLimits{next: cmp.Or(http.DefaultClient.Transport, http.DefaultTransport)}
})

// acmeLimits are HTTP clients for which an answer 429 to an ACME client is final: it becomes
// 403, with the header and the body that tell of the limit. Everything else passes.
type acmeLimits struct{ next http.RoundTripper }

func (l acmeLimits) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := l.next.RoundTrip(r)
	if err == nil && response.StatusCode == http.StatusTooManyRequests && strings.Contains(r.UserAgent(), acmeClient) {
		response.StatusCode = http.StatusForbidden
		response.Status = fmt.Sprintf("%d %s", http.StatusForbidden, http.StatusText(http.StatusForbidden))
	}
	return response, err
}

// explainLimit says of an error that is a limit of the certificate authority when that is
// asked again, and what to keep until then.
func explainLimit(err error, next time.Duration, keep string) error {
	if _, limited := local.RateLimitRetryAfter(err); !limited {
		return err
	}
	return fmt.Errorf("%w (a limit of the certificate authority, which ends by itself: it is asked again at %s. Keep %s, so that the next certificate is kept)",
		err, time.Now().Add(next).UTC().Format(time.RFC3339), keep)
}

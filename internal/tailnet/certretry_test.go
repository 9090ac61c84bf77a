// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"io"
	"net/http"
	"path"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/client/local"
	"tailscale.com/ipn"
)

// failingAuthority is a tailnet whose orders of certificates all fail.
type failingAuthority struct {
	mu      sync.Mutex
	domains []string // what it issues for
	orders  []string // the names that were asked for
}

func (a *failingAuthority) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.orders = append(a.orders, path.Base(r.URL.Path))
	return &http.Response{
		StatusCode: http.StatusInternalServerError, Status: "500 Internal Server Error", Request: r,
		Header: http.Header{}, Body: io.NopCloser(strings.NewReader("the authority is in maintenance")),
	}, nil
}

func (a *failingAuthority) certDomains() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.domains
}

func (a *failingAuthority) ordered() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return strings.Join(a.orders, " ")
}

func (a *failingAuthority) issueFor(domains ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.domains = domains
}

// TestCertificateRetry: an authority that fails is asked again when it was announced,
// whatever happens to the node meanwhile, and at once for another name.
func TestCertificateRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority := &failingAuthority{domains: []string{"a.tail1234.ts.net"}}
		n := newTestNode(FixedAuthKey("k"), quiet)
		n.client = &local.Client{Transport: authority, OmitAuth: true}
		n.status.name = "a.tail1234.ts.net"
		c := n.Certificates()
		c.domains = authority.certDomains
		go func() { _ = c.Run(t.Context()) }()
		want := func(what string, orders ...string) {
			t.Helper()
			synctest.Wait()
			if got := authority.ordered(); got != strings.Join(orders, " ") {
				t.Fatalf("%s: the orders are %q, want %q", what, got, orders)
			}
		}
		want("at first", "a.tail1234.ts.net")
		for _, state := range []ipn.State{ipn.Starting, ipn.NeedsLogin, ipn.Running} {
			n.update(func(s *status) { s.state = state })
			want("the node is "+state.String(), "a.tail1234.ts.net")
		}
		time.Sleep(issueBackoff.Duration * 2)
		want("after the pause", "a.tail1234.ts.net", "a.tail1234.ts.net")

		// Both parts of a change of name, in the order in which they are seen.
		authority.issueFor("b.tail1234.ts.net")
		n.update(func(s *status) { s.name = "b.tail1234.ts.net" })
		want("another name", "a.tail1234.ts.net", "a.tail1234.ts.net", "b.tail1234.ts.net")

		// HTTPS is switched off, and on again.
		authority.issueFor()
		time.Sleep(2 * domainCheck)
		if err := c.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "enable HTTPS in its DNS settings, or set tls.source (--tls) to another") {
			t.Errorf("without HTTPS: %v", err)
		}
		authority.issueFor("b.tail1234.ts.net")
		time.Sleep(2 * domainCheck)
		want("HTTPS again", "a.tail1234.ts.net", "a.tail1234.ts.net", "b.tail1234.ts.net", "b.tail1234.ts.net")
	})
}

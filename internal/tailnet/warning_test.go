// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/client/local"
)

// A name with a number is one that another device was in the way of; any other name was
// given by people, who mean it.
func TestNameWarning(t *testing.T) {
	for name, warns := range map[string]bool{
		"": false, "kube.tail1234.ts.net": false, "kube-1.tail1234.ts.net": true, "kube-12.tail1234.ts.net": true,
		"kube-eu.tail1234.ts.net": false, "kube-1-eu.tail1234.ts.net": false, "other.tail1234.ts.net": false, "kube-.tail1234.ts.net": false,
	} {
		n := newTestNode(FixedAuthKey("k"), quiet)
		n.config.Hostname, n.status.name = "kube", name
		if err := n.NameWarning(t.Context()); (err != nil) != warns {
			t.Errorf("%q: %v, want a warning: %v", name, err, warns)
		}
	}
}

// renewingAuthority has a certificate that is due, and limits orders of another while
// limited is set.
type renewingAuthority struct {
	due, next string // key and certificate in PEM
	limited   atomic.Bool
	orders    atomic.Int32
}

func (a *renewingAuthority) RoundTrip(r *http.Request) (*http.Response, error) {
	validity, err := time.ParseDuration(r.URL.Query().Get("min_validity"))
	if err != nil || validity == 0 {
		return nil, errors.New("such a renewal would fail out of sight")
	}
	answer := &http.Response{StatusCode: http.StatusOK, Request: r, Header: http.Header{}}
	body := a.due
	if validity > time.Minute {
		a.orders.Add(1)
		if body = a.next; a.limited.Load() {
			body = "too many certificates"
			answer.StatusCode = http.StatusTooManyRequests
			answer.Header.Set("Retry-After", "36000")
		}
	}
	answer.Body = io.NopCloser(strings.NewReader(body))
	return answer, nil
}

// TestRenewalFails: a certificate that cannot be renewed serves on, and everybody who looks
// can see that it is not renewed and why.
func TestRenewalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const name = "kube.tail1234.ts.net"
		now := time.Now()
		pair := func(from, to time.Time) string {
			certPEM, keyPEM := newPair(t, name, from, to)
			return keyPEM + certPEM
		}
		authority := &renewingAuthority{
			due:  pair(now.Add(-70*24*time.Hour), now.Add(20*24*time.Hour)),
			next: pair(now, now.Add(90*24*time.Hour)),
		}
		authority.limited.Store(true)
		var log bytes.Buffer
		n := newTestNode(FixedAuthKey("k"), slog.New(slog.NewTextHandler(&log, nil)))
		n.client = &local.Client{Transport: authority, OmitAuth: true}
		n.status.name = name
		c := n.Certificates()
		c.domains = func() []string { return []string{name} }
		go func() { _ = c.Run(t.Context()) }()
		synctest.Wait()
		ends := c.Expiry()
		if err := c.Ready(t.Context()); err != nil || ends.IsZero() {
			t.Errorf("the certificate ends at %v, ready: %v; want the one that there is", ends, err)
		}
		if err := c.Warning(t.Context()); err == nil || !strings.Contains(err.Error(), "is not renewed: ") || !strings.Contains(err.Error(), "too many certificates") {
			t.Errorf("the warning is %v", err)
		}
		if !strings.Contains(log.String(), "too many certificates") {
			t.Errorf("the log does not say why:\n%s", &log)
		}
		time.Sleep(9 * time.Hour)
		if n := authority.orders.Load(); n != 1 {
			t.Errorf("%d orders before the limit ends, want 1", n)
		}
		authority.limited.Store(false)
		time.Sleep(2 * time.Hour)
		if err := c.Warning(t.Context()); err != nil || !c.Expiry().After(ends) {
			t.Errorf("after the limit the certificate ends at %v, and the warning is %v", c.Expiry(), err)
		}
	})
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"net/http"
	"testing"
)

// Only limits that an ACME client meets become final.
func TestACMELimits(t *testing.T) {
	for name, tc := range map[string]struct {
		agent        string
		status, want int
	}{
		"a limit of an authority":       {"tailscaled/1.0 golang.org/x/crypto/acme@v0.1.0", http.StatusTooManyRequests, http.StatusForbidden},
		"an error of an authority":      {"tailscaled/1.0 golang.org/x/crypto/acme", http.StatusServiceUnavailable, http.StatusServiceUnavailable},
		"a limit of the Tailscale API":  {"tailscale-client-go", http.StatusTooManyRequests, http.StatusTooManyRequests},
		"a limit for a nameless client": {"", http.StatusTooManyRequests, http.StatusTooManyRequests},
	} {
		t.Run(name, func(t *testing.T) {
			client := &http.Client{Transport: acmeLimits{next: answerFunc(func(r *http.Request) *http.Response {
				return &http.Response{StatusCode: tc.status, Request: r, Header: http.Header{"Retry-After": {"60"}}, Body: http.NoBody}
			})}}
			request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://authority.example.com", nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("User-Agent", tc.agent)
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = response.Body.Close() }()
			if response.StatusCode != tc.want || response.Header.Get("Retry-After") != "60" {
				t.Errorf("status %d with header %v, want %d", response.StatusCode, response.Header, tc.want)
			}
		})
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// always returns a check with one answer.
func always(name string, err error) Check {
	return Check{Name: name, Check: func(context.Context) error { return err }}
}

func TestHandler(t *testing.T) {
	good, bad := always("ping", nil), always("tailnet", errors.New("not logged in"))
	for name, tc := range map[string]struct {
		checks []Check
		uri    string
		code   int
		body   string
	}{
		"all hold":            {[]Check{good}, "/readyz", 200, "ok"},
		"no checks":           {nil, "/readyz", 200, "ok"},
		"verbose":             {[]Check{good}, "/readyz?verbose", 200, "[+]ping ok\nreadyz check passed\n"},
		"one fails":           {[]Check{good, bad}, "/readyz", 500, "[+]ping ok\n[-]tailnet failed: not logged in\nreadyz check failed\n"},
		"one fails, verbose":  {[]Check{bad, good}, "/readyz?verbose", 500, "[-]tailnet failed: not logged in\n[+]ping ok\nreadyz check failed\n"},
		"without the failing": {[]Check{good, bad}, "/readyz?exclude=tailnet", 200, "ok"},
		"excluded, verbose":   {[]Check{good, bad}, "/readyz?verbose&exclude=tailnet", 200, "[+]ping ok\n[+]tailnet excluded: ok\nreadyz check passed\n"},
		"several excluded":    {[]Check{good, bad}, "/readyz?exclude=tailnet&exclude=ping&verbose", 200, "[+]ping excluded: ok\n[+]tailnet excluded: ok\nreadyz check passed\n"},
		"unknown excluded":    {[]Check{bad}, "/readyz?exclude=other", 500, "[-]tailnet failed: not logged in\nreadyz check failed\n"},
		"one that holds":      {[]Check{good, bad}, "/readyz/ping", 200, "ok"},
		"one that fails":      {[]Check{good, bad}, "/readyz/tailnet", 500, "[-]tailnet failed: not logged in\nreadyz check failed\n"},
		"one with a slash":    {[]Check{good, bad}, "/readyz/ping/", 200, "ok"},
		"one there is not":    {[]Check{good}, "/readyz/other", 404, "404 page not found\n"},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			Handler("readyz", tc.checks...).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, tc.uri, nil))
			if w.Code != tc.code {
				t.Errorf("status %d, want %d", w.Code, tc.code)
			}
			if diff := cmp.Diff(tc.body, w.Body.String()); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
		})
	}
}

// An excluded check is not asked, and the others are asked once.
func TestHandlerAsksWhatIsSelected(t *testing.T) {
	asked := map[string]int{}
	count := func(name string) Check {
		return Check{Name: name, Check: func(context.Context) error { asked[name]++; return nil }}
	}
	h := Handler("readyz", count("a"), count("b"))
	for _, uri := range []string{"/readyz?exclude=a", "/readyz/b"} {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, uri, nil))
	}
	if diff := cmp.Diff(map[string]int{"b": 2}, asked); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

// Checks run at once, and one that hangs is a failure when its time is over.
func TestHandlerBoundsChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := Check{Name: "slow", Check: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		begin, w := time.Now(), httptest.NewRecorder()
		Handler("readyz", hangs, hangs).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/readyz", nil))
		if took := time.Since(begin); w.Code != http.StatusInternalServerError || took != checkTimeout {
			t.Errorf("status %d after %v, want 500 after %v", w.Code, took, checkTimeout)
		}
	})
}

func TestCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var answer error
		asked := 0
		c := Cached(Check{Name: "api", Check: func(context.Context) error { asked++; return answer }}, time.Minute)
		check := func(want error, times int) {
			t.Helper()
			if err := c.Check(t.Context()); !errors.Is(err, want) || asked != times {
				t.Errorf("%v after asking %d times, want %v after %d", err, asked, want, times)
			}
		}
		down := errors.New("down")
		check(nil, 1)
		answer = down
		time.Sleep(time.Minute - time.Nanosecond)
		check(nil, 1) // the success is remembered
		time.Sleep(time.Nanosecond)
		check(down, 2)
		answer = nil
		check(down, 2) // so is the failure, but not for long
		time.Sleep(time.Second)
		check(nil, 3)
		if c.Name != "api" {
			t.Errorf("the check is called %q", c.Name)
		}
	})
}

// A probe that gives up must not make the check fail for those after it.
func TestCachedIsForEverybody(t *testing.T) {
	c := Cached(Check{Name: "api", Check: func(ctx context.Context) error { return ctx.Err() }}, time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Check(ctx); err != nil {
		t.Errorf("error %v", err)
	}
}

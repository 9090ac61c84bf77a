// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// always returns a check with one answer.
func always(name string, err error) Check {
	return Check{Name: name, Check: func(context.Context) error { return err }}
}

func TestHandler(t *testing.T) {
	good, bad := always("ping", nil), always("tailnet", errors.New("not logged in"))
	aging := Check{Name: "certificate", Warn: func(context.Context) error { return errors.New("not renewed") }}
	both := Check{Name: "certificate", Check: bad.Check, Warn: aging.Warn}
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
		"a warning":           {[]Check{aging}, "/readyz", 200, "ok"},
		"a warning, verbose":  {[]Check{good, aging}, "/readyz?verbose", 200, "[+]ping ok\n[!]certificate warning: not renewed\nreadyz check passed\n"},
		"both":                {[]Check{both}, "/readyz", 500, "[-]certificate failed: not logged in\nreadyz check failed\n"},
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

// What fails and what warns are different things to those who count them.
func TestCollector(t *testing.T) {
	answers := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	sick := errors.New("sick")
	registry := prometheus.NewRegistry()
	registry.MustRegister(NewCollector("tailhelm_ready", "Ready.", always("ping", nil), Check{Name: "old", Warn: answers(sick)}, Check{Name: "both", Check: answers(sick), Warn: answers(sick)}))
	const want = `
# HELP tailhelm_check_failing 1 while the readiness check fails.
# TYPE tailhelm_check_failing gauge
tailhelm_check_failing{check="both"} 1
tailhelm_check_failing{check="old"} 0
tailhelm_check_failing{check="ping"} 0
# HELP tailhelm_check_warning 1 while the readiness check holds, but may soon not.
# TYPE tailhelm_check_warning gauge
tailhelm_check_warning{check="both"} 0
tailhelm_check_warning{check="old"} 1
tailhelm_check_warning{check="ping"} 0
# HELP tailhelm_ready Ready.
# TYPE tailhelm_ready gauge
tailhelm_ready 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

// Warnings are logged when they begin and end, and when they change, but not all the time.
func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var warning atomic.Pointer[error]
		check := Check{Name: "certificate", Warn: func(context.Context) error {
			if err := warning.Load(); err != nil {
				return *err
			}
			return nil
		}}
		var log bytes.Buffer
		go Log(t.Context(), slog.New(slog.NewTextHandler(&log, nil)), check)
		for i, step := range []struct {
			after   time.Duration
			warning error
			lines   int
		}{
			{logInterval, nil, 0},
			{logInterval, errors.New("old"), 1},
			{logAgain, errors.New("old"), 1},
			{logInterval, errors.New("older"), 2},
			{logInterval, errors.New("still older"), 2},
			{logAgain, errors.New("still older"), 3},
			{logInterval, nil, 4},
			{logAgain, nil, 4},
		} {
			if step.warning == nil {
				warning.Store(nil)
			} else {
				warning.Store(&step.warning)
			}
			time.Sleep(step.after)
			synctest.Wait()
			if got := strings.Count(log.String(), "check=certificate"); got != step.lines {
				t.Fatalf("after step %d there are %d lines, want %d:\n%s", i, got, step.lines, &log)
			}
		}
	})
}

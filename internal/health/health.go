// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// checkTimeout bounds one check.
const checkTimeout = 5 * time.Second

// Check is one named condition of being ready.
type Check struct {
	// Name identifies the check, in lower case.
	Name string
	// Check returns nil, or why the condition does not hold. Without it, it always holds.
	Check func(ctx context.Context) error
	// Warn, if not nil, is asked while the condition holds. It returns nil, or why that will
	// not last unless somebody sees to it. A warning does not end readiness: it is for
	// people, and for alerts.
	Warn func(ctx context.Context) error
}

// Result is the outcome of a [Check]: at most one of both is not nil.
type Result struct {
	Failure error // why the condition does not hold
	Warning error // why it may soon not hold
}

// result runs the check.
func (c Check) result(ctx context.Context) Result {
	if c.Check != nil {
		if err := c.Check(ctx); err != nil {
			return Result{Failure: err}
		}
	}
	if c.Warn == nil {
		return Result{}
	}
	return Result{Warning: c.Warn(ctx)}
}

// Cached returns c with its success remembered for lifetime, for checks that ask
// others. A failure is remembered for a second, so that many probes cost one.
func Cached(c Check, lifetime time.Duration) Check {
	var (
		mu    sync.Mutex
		until time.Time
		last  error
	)
	return Check{Name: c.Name, Warn: c.Warn, Check: func(ctx context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); now.Before(until) {
			return last
		}
		// The answer is for others, too: it must not depend on whether this one waits.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
		defer cancel()
		last = c.Check(ctx)
		keep := lifetime
		if last != nil {
			keep = time.Second
		}
		until = time.Now().Add(keep)
		return last
	}}
}

// Handler answers for the checks under an endpoint such as "readyz": the whole at
// /readyz, in detail with ?verbose, without some with ?exclude=NAME, and one check
// at /readyz/NAME. The status is 200 or 500, as in Kubernetes.
func Handler(endpoint string, checks ...Check) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		selected := checks
		if name := strings.Trim(strings.TrimPrefix(r.URL.Path, "/"+endpoint), "/"); name != "" {
			i := slices.IndexFunc(checks, func(c Check) bool { return c.Name == name })
			if i < 0 {
				http.NotFound(w, r)
				return
			}
			selected = checks[i : i+1]
		}
		text, ok := report(r.Context(), selected, r.URL.Query()["exclude"])
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, verbose := r.URL.Query()["verbose"]
		switch {
		case !ok:
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = fmt.Fprintf(w, "%s%s check failed\n", text, endpoint)
		case verbose:
			_, _ = fmt.Fprintf(w, "%s%s check passed\n", text, endpoint)
		default:
			_, _ = fmt.Fprint(w, "ok")
		}
	})
}

// Failing runs the checks and returns the names of those that fail, with why.
func Failing(ctx context.Context, checks ...Check) map[string]string {
	failing := map[string]string{}
	for i, r := range Run(ctx, checks...) {
		if r.Failure != nil {
			failing[checks[i].Name] = r.Failure.Error()
		}
	}
	return failing
}

// Run runs the checks at once and returns their results in order.
func Run(ctx context.Context, checks ...Check) []Result { return runExcept(ctx, checks, nil) }

// runExcept is Run without some checks, whose results are empty.
func runExcept(ctx context.Context, checks []Check, exclude []string) []Result {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	results := make([]Result, len(checks))
	var group sync.WaitGroup
	for i, c := range checks {
		if !slices.Contains(exclude, c.Name) {
			group.Go(func() { results[i] = c.result(ctx) })
		}
	}
	group.Wait()
	return results
}

// report runs the checks and reports on them in order.
func report(ctx context.Context, checks []Check, exclude []string) (text string, ok bool) {
	results := runExcept(ctx, checks, exclude)
	var b strings.Builder
	ok = true
	for i, c := range checks {
		switch {
		case slices.Contains(exclude, c.Name):
			fmt.Fprintf(&b, "[+]%s excluded: ok\n", c.Name)
		case results[i].Failure != nil:
			ok = false
			fmt.Fprintf(&b, "[-]%s failed: %v\n", c.Name, results[i].Failure)
		case results[i].Warning != nil:
			fmt.Fprintf(&b, "[!]%s warning: %v\n", c.Name, results[i].Warning)
		default:
			fmt.Fprintf(&b, "[+]%s ok\n", c.Name)
		}
	}
	return b.String(), ok
}

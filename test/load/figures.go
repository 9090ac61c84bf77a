// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxErrors is how many errors figures quote.
const maxErrors = 20

// Figures are what became of a load in a phase.
type Figures struct {
	// Phase is its name, Seconds how long it took.
	Phase   string  `json:"phase"`
	Seconds float64 `json:"seconds"`
	// Requests are all that ended, Failed those that ended with an error. FailedAttempts
	// are those at which a connection failed: client-go makes those of reads again. Refused
	// are those among them that found nobody listening.
	Requests       int `json:"requests"`
	Failed         int `json:"failed"`
	FailedAttempts int `json:"failedAttempts"`
	Refused        int `json:"refused"`
	// LongestGapMS is the longest time in which no request ended well. The others are
	// durations of requests that did.
	LongestGapMS float64 `json:"longestGapMs"`
	P50MS        float64 `json:"p50Ms"`
	P99MS        float64 `json:"p99Ms"`
	MaxMS        float64 `json:"maxMs"`
	// Watches is how many there are. WatchesResumed counts how often one was begun again,
	// WatchesBroken how often one ended with something else than a clean end, and
	// WatchesLost those that ended for good. EventsLost are events that a watch has not
	// seen.
	Watches        int `json:"watches"`
	WatchesResumed int `json:"watchesResumed"`
	WatchesBroken  int `json:"watchesBroken"`
	WatchesLost    int `json:"watchesLost"`
	EventsLost     int `json:"eventsLost"`
	// StreamLives: the stream that was open when the phase began is open at its end.
	StreamLives bool `json:"streamLives"`
	// Errors are the first ones of requests, attempts and watches.
	Errors []string `json:"errors,omitempty"`
}

// String is the figures in one line.
func (f Figures) String() string {
	return fmt.Sprintf("%-32s %4.0f s, %4d requests, %d failed, %d attempts failed, %d refused; longest gap %5.0f ms, p50 %3.0f ms, p99 %4.0f ms, max %5.0f ms; %d watches, resumed %d times, %d broken, %d lost, %d events lost; stream lives: %t",
		f.Phase, f.Seconds, f.Requests, f.Failed, f.FailedAttempts, f.Refused, f.LongestGapMS, f.P50MS, f.P99MS, f.MaxMS,
		f.Watches, f.WatchesResumed, f.WatchesBroken, f.WatchesLost, f.EventsLost, f.StreamLives)
}

// record collects figures.
type record struct {
	mu        sync.Mutex
	figures   Figures
	begin     time.Time
	last      time.Time // success
	gap       time.Duration
	durations []time.Duration
	writes    []int
	// changed is closed and replaced with each success.
	changed chan struct{}
}

// reset begins the first phase.
func (r *record) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.figures, r.begin, r.last, r.changed = Figures{}, now, now, make(chan struct{})
}

// add notes a request that ended now.
func (r *record) add(begin time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.figures.Requests++
	if err != nil {
		r.figures.Failed++
		r.quoteLocked("request", err)
		return
	}
	r.durations = append(r.durations, now.Sub(begin))
	r.gap = max(r.gap, now.Sub(r.last))
	r.last = now
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *record) quoteLocked(what string, err error) {
	if len(r.figures.Errors) < maxErrors {
		r.figures.Errors = append(r.figures.Errors, fmt.Sprintf("%s %s: %v", time.Now().UTC().Format("15:04:05.000"), what, err))
	}
}

// wrote notes a write that the API server has confirmed.
func (r *record) wrote(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.writes = append(r.writes, n)
}

func (r *record) written() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.writes)
}

func (r *record) resumed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.figures.WatchesResumed++
}

func (r *record) unresumed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.figures.WatchesLost++
}

// attempt notes an attempt that failed.
func (r *record) attempt(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.figures.FailedAttempts++
	// A SOCKS5 server's answer has nothing but its text.
	if errors.Is(err, syscall.ECONNREFUSED) || strings.Contains(err.Error(), "connection refused") {
		r.figures.Refused++
	}
	r.quoteLocked("attempt", err)
}

// broke notes a watch that did not end cleanly.
func (r *record) broke(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.figures.WatchesBroken++
	r.quoteLocked("watch", err)
}

// cut ends a phase and begins the next one.
func (r *record) cut(name string) Figures {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, f := time.Now(), r.figures
	f.Phase, f.Seconds = name, now.Sub(r.begin).Seconds()
	f.LongestGapMS = milliseconds(max(r.gap, now.Sub(r.last)))
	slices.Sort(r.durations)
	if n := len(r.durations); n > 0 {
		f.P50MS, f.P99MS, f.MaxMS = milliseconds(r.durations[n/2]), milliseconds(r.durations[n*99/100]), milliseconds(r.durations[n-1])
	}
	r.figures, r.begin, r.gap, r.durations = Figures{}, now, 0, nil
	return f
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// awaitSuccess returns when the first request after a time ended well.
func (r *record) awaitSuccess(ctx context.Context, after time.Time) (time.Time, error) {
	for {
		r.mu.Lock()
		last, changed := r.last, r.changed
		r.mu.Unlock()
		if last.After(after) {
			return last, nil
		}
		select {
		case <-ctx.Done():
			return after, fmt.Errorf("no request ends well: %w", ctx.Err())
		case <-changed:
		}
	}
}

// observed notes attempts that fail and watches that break.
type observed struct {
	next   http.RoundTripper
	record *record
}

// RoundTrip sends a request.
func (o *observed) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := o.next.RoundTrip(r)
	if err != nil {
		if r.Context().Err() == nil {
			o.record.attempt(fmt.Errorf("%s %s: %w", r.Method, r.URL.Path, err))
		}
		return nil, err
	}
	if r.URL.Query().Get("watch") != "" && res.StatusCode == http.StatusOK {
		res.Body = &observedBody{ReadCloser: res.Body, ctx: r.Context(), record: o.record}
	}
	return res, nil
}

// observedBody notes the end of a watch that is not clean.
type observedBody struct {
	io.ReadCloser
	ctx    context.Context //nolint:containedctx // the request's
	record *record
	once   sync.Once
}

func (b *observedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && b.ctx.Err() == nil {
		b.once.Do(func() { b.record.broke(err) })
	}
	return n, err
}

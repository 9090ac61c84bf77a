// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"tailscale.com/sessionrecording"
)

const (
	// eventTimeout bounds the attempts to send one event.
	eventTimeout = 5 * time.Second
	// eventConnections is how many connections to one recorder events use at a time.
	eventConnections = 32
	// maxEvents is how many events that need not be recorded are under way at a time.
	maxEvents = 256
)

// ErrEventsBehind means that an event was dropped because too many are under way.
var ErrEventsBehind = errors.New("the recorders are too slow for the events")

// newEventTransport returns the transport for events, whose connections are used again.
func newEventTransport(dial Dial) *http.Transport {
	t := newTransport(dial, false)
	t.MaxConnsPerHost, t.MaxIdleConnsPerHost, t.IdleConnTimeout = eventConnections, eventConnections, avoidance
	return t
}

// SendEvent sends an event to the first of the recorders that takes it, and returns when
// that has it. Its error is an [*UnreachableError], or ctx's.
func (r *Recorders) SendEvent(ctx context.Context, recorders []netip.AddrPort, e sessionrecording.Event, enforced bool) error {
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encoding an event: %w", err)
	}
	sending, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	var errs []error
	for _, addr := range r.order(recorders, enforced) {
		err := r.post(sending, addr, body)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, errNoEvents) { // such a recorder takes sessions all the same
			r.remember(addr, err)
		}
		errs = append(errs, fmt.Errorf("recorder %s: %w", addr, err))
	}
	if len(errs) == 0 {
		errs = append(errs, errAvoided)
	}
	return &UnreachableError{Recorders: recorders, Err: errors.Join(errs...)}
}

// errNoEvents is why a recorder takes no event.
var errNoEvents = errors.New("it knows no events")

// post sends an event to one recorder.
func (r *Recorders) post(ctx context.Context, addr netip.AddrPort, body []byte) error {
	req, err := request(ctx, http.MethodPost, addr, "/v2/event", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := r.events.RoundTrip(req)
	switch {
	case err != nil:
		return err
	case res.StatusCode == http.StatusNotFound:
		return errors.Join(errNoEvents, refused(res))
	case res.StatusCode != http.StatusOK:
		return refused(res)
	}
	return res.Body.Close()
}

// OfferEvent is SendEvent for an event that need not be recorded: it does not wait, and
// calls done with SendEvent's error, or with [ErrEventsBehind].
func (r *Recorders) OfferEvent(recorders []netip.AddrPort, e sessionrecording.Event, done func(error)) {
	select {
	case r.offered <- struct{}{}:
	default:
		done(ErrEventsBehind)
		return
	}
	go func() {
		defer func() { <-r.offered }()
		done(r.SendEvent(context.Background(), recorders, e, false))
	}()
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bytes"
	"cmp"
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
	// eventTimeout bounds the attempts to send one event: see share.
	eventTimeout = 5 * time.Second
	// maxSent is how many events are sent at a time, each over a connection of its own, and
	// maxSentPerDevice how many of them are one device's.
	maxSent, maxSentPerDevice = 32, 8
	// maxOffered is how many events that need not be recorded are sent or wait for that, and
	// maxOfferedPerDevice how many of them are one device's: kubectl's discovery takes 100.
	maxOffered, maxOfferedPerDevice = 512, 128
)

// ErrEventsBehind means that an event was not sent because too many are under way, of its
// device or of all.
var ErrEventsBehind = errors.New("the recorders are too slow for the events")

// newEventTransport returns the transport for events, whose connections are used again.
func newEventTransport(dial Dial) *http.Transport {
	t := newTransport(dial, false)
	t.MaxIdleConnsPerHost, t.IdleConnTimeout = maxSent, avoidance
	return t
}

// SendEvent sends an event to the first of the recorders that takes it, and returns when
// that has it. Its error is an [*UnreachableError], [ErrEventsBehind], or ctx's.
func (r *Recorders) SendEvent(ctx context.Context, recorders []netip.AddrPort, e sessionrecording.Event, enforced bool) error {
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encoding an event: %w", err)
	}
	waiting, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	release, err := r.sent.Acquire(waiting, deviceOf(e))
	if err != nil {
		return cmp.Or(ctx.Err(), ErrEventsBehind)
	}
	defer release()
	var errs []error
	asked := r.deaf.order(recorders, enforced)
	for _, addr := range asked {
		err := r.post(ctx, addr, share(eventTimeout, len(asked)), body)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.deaf.remember(addr, err)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("recorder %s: %w", addr, err))
	}
	return unreachable(recorders, errs)
}

// deviceOf returns the device whose request an event tells of.
func deviceOf(e sessionrecording.Event) string { return string(e.Source.NodeID) }

// errNoEvents is why a recorder takes no event.
var errNoEvents = errors.New("it knows no events")

// post sends an event to one recorder, which has to take it within timeout.
func (r *Recorders) post(ctx context.Context, addr netip.AddrPort, timeout time.Duration, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
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
	release, ok := r.offered.TryAcquire(deviceOf(e))
	if !ok {
		done(ErrEventsBehind)
		return
	}
	go func() {
		defer release()
		done(r.SendEvent(context.Background(), recorders, e, false))
	}()
}

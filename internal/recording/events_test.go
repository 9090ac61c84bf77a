// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/sessionrecording"
	"tailscale.com/tailcfg"
)

// Events use connections again, and a recorder that knows none takes sessions all the
// same.
func TestSendEvent(t *testing.T) {
	var events, connections atomic.Int32
	knowing := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/event" && r.Header.Get("Content-Type") == "application/json" {
			events.Add(1)
		}
	}))
	knowing.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	knowing.Start()
	defer knowing.Close()
	old := newServer(t, nil)
	r := NewRecorders(dialer)
	defer r.events.CloseIdleConnections()
	for range 3 {
		if err := r.SendEvent(t.Context(), []netip.AddrPort{old.addr, netip.MustParseAddrPort(knowing.Listener.Addr().String())}, sessionrecording.Event{}, true); err != nil {
			t.Fatal(err)
		}
	}
	if events.Load() != 3 || connections.Load() != 1 {
		t.Errorf("%d events over %d connections", events.Load(), connections.Load())
	}
	if err := r.SendEvent(t.Context(), []netip.AddrPort{old.addr}, sessionrecording.Event{}, false); !errors.Is(err, errNoEvents) {
		t.Errorf("error %v", err)
	}
	_ = connect(t, old, true).Finish()
}

// Events that need not be recorded cost their request nothing, and a bounded number is
// under way, of one device and of all.
func TestOfferEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRecorders(hang)
		var ended, behind atomic.Int32
		start := time.Now()
		for i := range maxOffered/maxOfferedPerDevice + 1 {
			for range maxOfferedPerDevice + 10 {
				r.OfferEvent([]netip.AddrPort{first}, eventOf(tailcfg.StableNodeID(fmt.Sprint("node", i))), func(err error) {
					ended.Add(1)
					if errors.Is(err, ErrEventsBehind) {
						behind.Add(1)
					}
				})
			}
			if got, want := int(behind.Load()), 10*(i+1)+max(0, (i+1)*maxOfferedPerDevice-maxOffered); got != want || time.Since(start) > 0 {
				t.Fatalf("after %d devices %d events are dropped, want %d, after %s", i+1, got, want, time.Since(start))
			}
		}
		before := behind.Load()
		time.Sleep(10 * eventTimeout) // also those end that wait for their turn
		synctest.Wait()
		if got, want := ended.Load(), before+maxOffered; got != want {
			t.Errorf("%d events have ended, want %d", got, want)
		}
	})
}

// eventOf is an event of a device.
func eventOf(device tailcfg.StableNodeID) sessionrecording.Event {
	return sessionrecording.Event{Source: sessionrecording.Source{NodeID: device}}
}

// However many events one device has under way, those of others are sent at once, and no
// recorder counts as one that does not answer because they wait for each other.
func TestEventsOfOneDevice(t *testing.T) {
	const slow, events = eventTimeout - time.Second, 3 * maxSentPerDevice
	inBubbleWithEvents(t, http.NotFound, func(_ http.ResponseWriter, r *http.Request) {
		var e sessionrecording.Event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		if e.Source.NodeID == "busy" {
			time.Sleep(slow)
		}
	}, func(t *testing.T, r *Recorders) {
		list := []netip.AddrPort{first}
		errs := make(chan error, events)
		for range events {
			go func() { errs <- r.SendEvent(t.Context(), list, eventOf("busy"), true) }()
		}
		synctest.Wait()
		start := time.Now()
		if err := r.SendEvent(t.Context(), list, eventOf("another"), true); err != nil || time.Since(start) > 0 {
			t.Errorf("another device's event is sent after %s: %v", time.Since(start), err)
		}
		behind := 0
		for range events {
			switch err := <-errs; {
			case errors.Is(err, ErrEventsBehind):
				behind++
			case err != nil:
				t.Error(err)
			}
		}
		if behind != maxSentPerDevice {
			t.Errorf("%d events were not sent, want %d", behind, maxSentPerDevice)
		}
		if asked := r.deaf.order(list, false); len(asked) != 1 {
			t.Error("the recorder counts as one that does not answer")
		}
	})
}

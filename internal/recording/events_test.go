// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
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
// under way.
func TestOfferEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRecorders(hang)
		var lost, behind atomic.Int32
		start := time.Now()
		for range maxEvents + 10 {
			r.OfferEvent([]netip.AddrPort{first}, sessionrecording.Event{}, func(err error) {
				if errors.Is(err, ErrEventsBehind) {
					behind.Add(1)
				} else if err != nil {
					lost.Add(1)
				}
			})
		}
		if behind.Load() != 10 || time.Since(start) > 0 {
			t.Errorf("%d events are dropped, after %s", behind.Load(), time.Since(start))
		}
		time.Sleep(10 * eventTimeout) // also those ends that wait for a connection
		synctest.Wait()
		if lost.Load() != maxEvents {
			t.Error(fmt.Sprint(lost.Load(), " events are lost"))
		}
	})
}

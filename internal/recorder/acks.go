// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// ackInterval is how often a sender hears of the recorder though it sends nothing. Senders
// give up after 30 seconds.
const ackInterval = 10 * time.Second

// ack is a message to the sender.
type ack struct {
	// Ack is how many bytes are on the disk.
	Ack int64 `json:"ack"`
	// Error is why there will be no more.
	Error string `json:"error,omitempty"`
}

// acks syncs a recording as it grows and tells the sender how much is on the disk. What
// is written during a sync is told by the next one.
type acks struct {
	w    http.ResponseWriter
	f    *file
	wake chan struct{}

	done   sync.WaitGroup
	broken atomic.Bool // a sync has failed
	synced int64       // bytes; of the goroutine, until it has ended
	err    error       // likewise
}

// errBroken means that a sync has failed. stop tells why.
var errBroken = errors.New("the recording cannot be kept")

// start begins the answer.
func (a *acks) start(interval time.Duration) {
	a.send(ack{})
	a.done.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case _, more := <-a.wake:
				if !more {
					return
				}
				if a.err = a.sync(); a.err != nil {
					a.broken.Store(true)
					return
				}
			case <-tick.C:
			}
			a.send(ack{Ack: a.synced})
		}
	})
}

func (a *acks) sync() error {
	n := a.f.written()
	if err := a.f.Sync(); err != nil {
		return fmt.Errorf("syncing the recording: %w", err)
	}
	a.synced = n
	return nil
}

// written tells that the recording has grown.
func (a *acks) written() error {
	if a.broken.Load() {
		return errBroken
	}
	select {
	case a.wake <- struct{}{}:
	default: // a sync is due anyway
	}
	return nil
}

// stop ends the goroutine and returns why a sync has failed.
func (a *acks) stop() error {
	close(a.wake)
	a.done.Wait()
	return a.err
}

// send sends a message. A sender that has gone is noticed by reading from it.
func (a *acks) send(m ack) {
	_ = json.NewEncoder(a.w).Encode(m)
	_ = http.NewResponseController(a.w).Flush()
}

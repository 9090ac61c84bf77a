// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"context"
	"sync"
)

// slots bound what is under way at a time: of all devices, and of each, so that one leaves
// something to the others.
type slots struct {
	all       chan struct{}
	perDevice int

	mu      sync.Mutex
	devices map[string]*deviceSlots
}

// deviceSlots are those of one device.
type deviceSlots struct {
	taken chan struct{}
	users int // those who wait included; the last one takes it away
}

func newSlots(all, perDevice int) *slots {
	return &slots{all: make(chan struct{}, all), perDevice: perDevice, devices: map[string]*deviceSlots{}}
}

// acquire waits for a slot of a device, until ctx is done. release gives it back.
func (s *slots) acquire(ctx context.Context, device string) (release func(), err error) {
	s.mu.Lock()
	d := s.devices[device]
	if d == nil {
		d = &deviceSlots{taken: make(chan struct{}, s.perDevice)}
		s.devices[device] = d
	}
	d.users++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if d.users--; d.users == 0 {
			delete(s.devices, device)
		}
	}
	select {
	case d.taken <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
	select {
	case s.all <- struct{}{}:
	case <-ctx.Done():
		<-d.taken
		leave()
		return nil, ctx.Err()
	}
	return func() {
		<-s.all
		<-d.taken
		leave()
	}, nil
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// queueLimit is how much of a recording waits for the recorder before output has to
	// wait. One read more than that may be held.
	queueLimit = 256 << 10
	// sendSize is how much is sent at a time.
	sendSize = 32 << 10
	// stallLimit is how long a recorder may take nothing.
	stallLimit = 30 * time.Second
	// lenientStall is stallLimit for recordings that are not enforced.
	lenientStall = 5 * time.Second
	// sizeWait is how long the size of a terminal is waited for. Clients tell it first.
	sizeWait = time.Second
	// FinishLimit is how long a recorder may take to confirm the end.
	FinishLimit = 10 * time.Second
)

// Errors that end a recording.
var (
	errStalled     = errors.New("the recorder takes nothing any more")
	errEnded       = errors.New("the recorder has ended the recording")
	errUnconfirmed = errors.New("the recorder does not confirm the end of the recording")
	errFinished    = errors.New("the recording is finished")
)

// Recording is the recording of one session, at a recorder that has its first line. Its
// methods may be called by several goroutines.
type Recording struct {
	recorder netip.AddrPort
	enforced bool
	tty      bool
	upload   upload
	ended    chan struct{} // closed when the recorder has nothing more to say
	uploaded chan struct{} // closed when everything was sent, or nothing more will be

	mu      sync.Mutex
	changed sync.Cond // of what follows
	cast    cast
	sized   bool   // the terminal's size is recorded, or not waited for any more
	queue   []byte // events that were not sent
	closing bool   // there will be no more events
	err     error  // why the recording is not whole
	onLoss  func(error)
}

// newRecording returns a recording that goes on in u, which has the first line of s.
func newRecording(recorder netip.AddrPort, u upload, s Session, start time.Time, enforced bool) *Recording {
	r := &Recording{
		recorder: recorder, enforced: enforced, tty: s.TTY, upload: u, cast: cast{start: start}, sized: !s.TTY,
		ended: make(chan struct{}), uploaded: make(chan struct{}),
	}
	r.changed.L = &r.mu
	go r.watch()
	go r.send()
	return r
}

// Recorder returns the recorder's address.
func (r *Recording) Recorder() netip.AddrPort { return r.recorder }

// watch waits for the recorder's last word.
func (r *Recording) watch() {
	err := <-r.upload.ended
	r.mu.Lock()
	closing := r.closing
	r.mu.Unlock()
	if err == nil && !closing {
		err = errEnded
	}
	if err != nil {
		r.fail(err)
	}
	close(r.ended)
}

// begin begins the session. onLoss is called once if the recording ends before the
// session, possibly before begin returns.
func (r *Recording) begin(onLoss func(error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	r.onLoss = onLoss
	if r.tty {
		time.AfterFunc(sizeWait, func() { r.resize(size{}) })
	}
	return nil
}

// output records what a stream says. It waits while the recorder is behind, and returns
// why the recording has ended.
func (r *Recording) output(from stream, text []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) >= queueLimit && r.err == nil && !r.closing {
		r.sized = true // no size came with all that
		r.changed.Broadcast()
		r.changed.Wait()
	}
	if err := r.overLocked(); err != nil {
		return err
	}
	r.queue = r.cast.appendOutput(r.queue, from, text, time.Now())
	r.changed.Broadcast()
	return nil
}

// resize records a size of the terminal, or that none is waited for any more. The first
// line had to be at the recorder before there was a size, and says defaultSize. So output
// is held until the terminal has told its own: that is the first event then, at the
// beginning of the recording, and a player shows nothing in another size.
func (r *Recording) resize(s size) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.overLocked() != nil || !r.tty || s == (size{}) && r.sized {
		return
	}
	switch {
	case s == (size{}):
	case !r.sized:
		r.queue = append(r.cast.appendSize(nil, s, r.cast.start), r.queue...)
	case len(r.queue) < queueLimit: // a client that only tells sizes is not waited for
		r.queue = r.cast.appendSize(r.queue, s, time.Now())
	}
	r.sized = true
	r.changed.Broadcast()
}

// Note records a remark of the proxy, as a marker: no output, and no player shows it as
// such.
func (r *Recording) Note(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.overLocked() == nil {
		r.queue = r.cast.appendEvent(r.queue, 'm', []byte(text), time.Now())
		r.changed.Broadcast()
	}
}

func (r *Recording) overLocked() error {
	if r.err == nil && r.closing {
		return errFinished
	}
	return r.err
}

// failed returns why the recording has ended before its session, or nil.
func (r *Recording) failed() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// fail ends the recording before its session.
func (r *Recording) fail(err error) {
	r.mu.Lock()
	first := r.err == nil
	if first {
		r.err = err
	}
	onLoss := r.onLoss
	r.changed.Broadcast()
	r.mu.Unlock()
	if !first {
		return
	}
	r.upload.abort(err)
	if onLoss != nil {
		onLoss(err)
	}
}

// send sends events until the recording ends.
func (r *Recording) send() {
	defer close(r.uploaded)
	limit := stallLimit
	if !r.enforced {
		limit = lenientStall
	}
	stall := time.AfterFunc(limit, func() { r.fail(errStalled) })
	stall.Stop()
	defer stall.Stop()
	var sending []byte
	for {
		var ok bool
		if sending, ok = r.next(sending[:0]); !ok {
			break
		}
		// In pieces: a recorder that is slow takes something all the time.
		for piece := range slices.Chunk(sending, sendSize) {
			stall.Reset(limit)
			_, err := r.upload.Write(piece)
			stall.Stop()
			if err != nil {
				r.fail(err)
				break
			}
		}
	}
	// Only what is whole may have an end. nil is one. (Closing never errs.)
	_ = r.upload.CloseWithError(r.failed())
}

// next waits for something to send. It takes the queue and leaves empty in its place.
func (r *Recording) next(empty []byte) (sending []byte, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.err == nil {
		switch {
		case r.sized && len(r.queue) > 0:
			sending, r.queue = r.queue, empty
			r.changed.Broadcast()
			return sending, true
		case r.closing:
			return nil, false
		}
		r.changed.Wait()
	}
	return nil, false
}

// Finish ends the recording. It waits until the recorder has confirmed everything, for
// [FinishLimit] at most, and returns nil then, or why the recording is not whole.
func (r *Recording) Finish() error {
	defer r.upload.cancel()
	r.mu.Lock()
	if r.err == nil {
		r.queue = r.cast.appendRest(r.queue, time.Now())
	}
	r.sized, r.closing = true, true
	r.changed.Broadcast()
	r.mu.Unlock()
	limit := time.AfterFunc(FinishLimit, func() { r.fail(errUnconfirmed) })
	defer limit.Stop()
	<-r.uploaded
	<-r.ended
	return r.failed()
}

// BreakOff ends the recording so that the recorder does not take it for whole, because
// of why. The recorder keeps the first line: it is waited, for [FinishLimit] at most,
// until it has that. BreakOff returns why, or why it was broken off before.
func (r *Recording) BreakOff(why error) error {
	limit := time.NewTimer(FinishLimit)
	defer limit.Stop()
	if r.upload.introduced != nil {
		select {
		case <-r.upload.introduced:
		case <-r.ended:
		case <-limit.C:
		}
	}
	r.fail(why)
	return r.Finish()
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tailscale.com/sessionrecording"
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
	// finishLimit is how long a recorder may take to confirm the end.
	finishLimit = 10 * time.Second
)

// Errors that end a recording.
var (
	errStalled     = errors.New("the recorder takes nothing any more")
	errEnded       = errors.New("the recorder has ended the recording")
	errUnconfirmed = errors.New("the recorder does not confirm the end of the recording")
	errFinished    = errors.New("the recording is finished")
	// ErrUnused is what Finish returns for a recording of which there was nothing.
	ErrUnused = errors.New("nothing was recorded")
)

// Session is what a recording says about itself.
type Session struct {
	// Header is the first line of the asciicast; its version, size and time are filled in.
	Header sessionrecording.CastHeader
	// TTY means that the session has a terminal, whose size the client will tell.
	TTY bool
}

// Recording is the recording of one session, connected to a recorder. Its methods may
// be called by several goroutines.
type Recording struct {
	recorder netip.AddrPort
	enforced bool
	upload   upload
	ended    chan struct{} // closed when the recorder has nothing more to say
	uploaded chan struct{} // closed when everything was sent, or nothing more will be

	mu      sync.Mutex
	changed sync.Cond // of what follows
	cast    cast
	session Session
	head    []byte // the header, until it is sent
	begun   bool
	headed  bool   // the header is made
	queue   []byte // events that were not sent
	closing bool   // there will be no more events
	err     error  // why the recording is not whole
	onLoss  func(error)
}

func newRecording(recorder netip.AddrPort, u upload, enforced bool) *Recording {
	r := &Recording{recorder: recorder, enforced: enforced, upload: u, ended: make(chan struct{}), uploaded: make(chan struct{})}
	r.changed.L = &r.mu
	go r.watch()
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

// begin starts the asciicast. onLoss is called once if the recording ends before the
// session, possibly before begin returns.
func (r *Recording) begin(s Session, onLoss func(error)) error {
	r.mu.Lock()
	r.begun, r.session, r.onLoss = true, s, onLoss
	r.cast.start = time.Now()
	r.session.Header.Version = 2
	r.session.Header.Timestamp = r.cast.start.Unix()
	err := r.err
	if err == nil && !s.TTY {
		err = r.makeHeadLocked(size{})
	}
	r.mu.Unlock()
	if err != nil {
		close(r.uploaded)
		r.fail(err)
		return err
	}
	if s.TTY {
		time.AfterFunc(sizeWait, func() { r.makeHead(defaultSize) })
	}
	go r.send()
	return nil
}

// makeHead makes the header unless it is made.
func (r *Recording) makeHead(s size) {
	r.mu.Lock()
	err := r.makeHeadLocked(s)
	r.mu.Unlock()
	if err != nil {
		r.fail(err)
	}
}

func (r *Recording) makeHeadLocked(s size) (err error) {
	if r.headed {
		return nil
	}
	r.session.Header.Width, r.session.Header.Height = int(s.Width), int(s.Height)
	r.head, err = appendHeader(nil, r.session.Header)
	if err != nil {
		return fmt.Errorf("encoding the header of a recording: %w", err)
	}
	r.headed = true
	r.changed.Broadcast()
	return nil
}

// output records what a stream says. It waits while the recorder is behind, and returns
// why the recording has ended.
func (r *Recording) output(from stream, text []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) >= queueLimit && r.err == nil && !r.closing {
		if err := r.makeHeadLocked(defaultSize); err != nil { // no size came with all that
			return err
		}
		r.changed.Wait()
	}
	if err := r.overLocked(); err != nil {
		return err
	}
	r.queue = r.cast.appendOutput(r.queue, from, text, time.Now())
	r.changed.Broadcast()
	return nil
}

// resize records a size of the terminal. The first one is in the header.
func (r *Recording) resize(s size) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.overLocked() != nil || !r.session.TTY {
		return
	}
	if !r.headed {
		_ = r.makeHeadLocked(s) // a size does not change whether it can be encoded
		return
	}
	// A client that only tells sizes is not waited for.
	if len(r.queue) < queueLimit {
		r.queue = r.cast.appendSize(r.queue, s, time.Now())
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

// send sends header and events until the recording ends.
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
	_ = r.upload.Close() // its error is that of the upload, which watch gets
}

// next waits for something to send. It takes the queue and leaves empty in its place.
func (r *Recording) next(empty []byte) (sending []byte, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.err == nil {
		switch {
		case len(r.head) > 0:
			sending, r.head = append(empty, r.head...), nil
			return sending, true
		case r.headed && len(r.queue) > 0:
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
// finishLimit at most, and returns nil then; ErrUnused if the session never began; or
// why the recording is not whole.
func (r *Recording) Finish() error {
	defer r.upload.cancel()
	r.mu.Lock()
	begun := r.begun
	if begun && r.err == nil {
		_ = r.makeHeadLocked(defaultSize) // see resize
		r.queue = r.cast.appendRest(r.queue, time.Now())
	}
	r.closing = true
	r.changed.Broadcast()
	r.mu.Unlock()
	if !begun {
		r.upload.abort(ErrUnused)
		<-r.ended
		return ErrUnused
	}
	limit := time.AfterFunc(finishLimit, func() { r.fail(errUnconfirmed) })
	defer limit.Stop()
	<-r.uploaded
	<-r.ended
	return r.failed()
}

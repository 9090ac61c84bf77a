// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"sync"
	"time"
)

const (
	// ackWindow is how long a recorder may be silent while it gets a recording.
	ackWindow = 30 * time.Second
	// An HTTP/2 connection that is silent for pingAfter is asked for a sign of life, and
	// given up pingTimeout later.
	pingAfter   = 15 * time.Second
	pingTimeout = 15 * time.Second
	// maxAck bounds a message of a recorder.
	maxAck = 64 << 10
)

var (
	errNoAcks     = fmt.Errorf("the recorder has acknowledged nothing for %s", ackWindow)
	errAckTooLong = fmt.Errorf("a message of the recorder is longer than %d bytes", maxAck)
)

// errUnacknowledged is why a recorder does not get a session.
var errUnacknowledged = errors.New("it does not acknowledge the beginning of the recording")

// upload is the body of a request to a recorder, which has been accepted.
type upload struct {
	*io.PipeWriter
	// introduced is closed when the recorder has acknowledged the first line. It is nil in
	// version 1 of the protocol, which knows no acknowledgements.
	introduced <-chan struct{}
	// ended gets why it has ended, or is closed.
	ended  <-chan error
	cancel context.CancelFunc
}

// abort ends the upload so that the recorder does not take it for whole.
func (u upload) abort(why error) {
	_ = u.CloseWithError(why) // never errs
	u.cancel()
}

// introduce sends the first line of a recording, and waits until the recorder has it. A
// recorder has to acknowledge something within ackWindow, and must have that line by then
// if the recording is enforced. Otherwise the session goes on when the line is sent, which
// may take lenientStall.
func (u upload) introduce(ctx context.Context, head []byte, enforced bool) error {
	limit := lenientStall
	if enforced {
		limit = ackWindow
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	sent := make(chan error, 1)
	go func() {
		_, err := u.Write(head)
		if err == nil {
			_, err = u.Write(nil) // is taken when what was before is on its way
		}
		sent <- err
	}()
	for {
		select {
		case err := <-sent:
			if err == nil && (!enforced || u.introduced == nil) {
				return nil
			}
			sent = nil // an error has a reason, which comes
		case <-u.introduced:
			return nil
		case err := <-u.ended:
			return cmp.Or(err, errEnded)
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return errUnacknowledged
		}
	}
}

// start begins an upload to the recorder at addr and returns when the recorder has
// accepted it. The upload ends with ctx. Its first line will have head bytes.
func (r *Recorders) start(ctx context.Context, addr netip.AddrPort, head int) (upload, error) {
	dial := r.dialOnce()
	modern := newTransport(dial, true)
	if speaksV2(ctx, modern, addr) {
		return startV2(ctx, modern, addr, head)
	}
	modern.CloseIdleConnections()
	return startV1(ctx, newTransport(dial, false), addr)
}

// newTransport returns a transport for one upload: HTTP/2 without TLS, or HTTP/1.1.
func newTransport(dial Dial, modern bool) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(modern)
	protocols.SetHTTP1(!modern)
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			// net/http may go on dialing for others when a request has ended.
			ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
			defer cancel()
			return dial(ctx, network, address)
		},
		Protocols: protocols, DisableCompression: true, IdleConnTimeout: attemptTimeout,
		// The attempt is bounded; without an answer nothing may be sent.
		ExpectContinueTimeout: time.Hour,
		HTTP2:                 &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
}

// request makes a request to the recorder at addr.
func request(ctx context.Context, method string, addr netip.AddrPort, path string, body io.Reader) (*http.Request, error) {
	return http.NewRequestWithContext(ctx, method, "http://"+addr.String()+path, body)
}

// speaksV2 asks a recorder whether it knows version 2 of the protocol. A POST would not
// tell: a server of HTTP/1 does not answer one before its end.
func speaksV2(ctx context.Context, t *http.Transport, addr netip.AddrPort) bool {
	r, err := request(ctx, http.MethodHead, addr, "/v2/record", nil)
	if err != nil {
		return false
	}
	res, err := t.RoundTrip(r)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK && res.ProtoMajor > 1
}

// errRefused is why a recorder does not take something that has answered.
var errRefused = errors.New("it answers")

// refused is a recorder's answer that is no. It wraps errRefused.
func refused(res *http.Response) error {
	words, _ := io.ReadAll(io.LimitReader(res.Body, 256)) // an explanation, if there is one
	_ = res.Body.Close()
	return fmt.Errorf("%w %s: %q", errRefused, res.Status, words)
}

// startV2 begins an upload that is acknowledged on the way.
func startV2(ctx context.Context, t *http.Transport, addr netip.AddrPort, head int) (upload, error) {
	ctx, cancel := context.WithCancel(ctx)
	fail := func(err error) (upload, error) {
		cancel()
		t.CloseIdleConnections()
		return upload{}, err
	}
	body, w := io.Pipe()
	r, err := request(ctx, http.MethodPost, addr, "/v2/record", body)
	if err != nil {
		return fail(err)
	}
	res, err := t.RoundTrip(r) //nolint:bodyclose // closed when the upload ends, or by refused
	if err != nil {
		return fail(err)
	}
	if res.StatusCode != http.StatusOK {
		return fail(refused(res))
	}
	ended, introduced := make(chan error, 1), make(chan struct{})
	introduce := sync.OnceFunc(func() { close(introduced) })
	go func() {
		defer close(ended)
		defer t.CloseIdleConnections()
		defer cancel()
		if err := readAcks(res.Body, func(n int64) {
			if n >= int64(head) {
				introduce()
			}
		}); err != nil {
			ended <- err
		}
		_ = w.CloseWithError(io.ErrClosedPipe) // nobody reads what is still written
		_ = res.Body.Close()
	}()
	return upload{PipeWriter: w, introduced: introduced, ended: ended, cancel: cancel}, nil
}

// ack is a message of a recorder.
type ack struct {
	// Ack is how many bytes the recorder has.
	Ack int64 `json:"ack,omitempty"`
	// Error is why there will be no more.
	Error string `json:"error,omitempty"`
}

// readAcks reads what a recorder says until its end, which is nil if the recorder has
// everything. It tells how many bytes are acknowledged.
func readAcks(body io.ReadCloser, acknowledged func(int64)) error {
	silence := time.AfterFunc(ackWindow, func() { _ = body.Close() })
	defer silence.Stop()
	limited := &io.LimitedReader{R: body}
	decoder := json.NewDecoder(limited)
	for {
		limited.N = maxAck
		var a ack
		switch err := decoder.Decode(&a); {
		case err == nil:
		case !silence.Stop():
			return errNoAcks
		case limited.N <= 0:
			return errAckTooLong
		case errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("reading the acknowledgements of the recorder: %w", err)
		}
		if a.Error != "" {
			return fmt.Errorf("the recorder says: %q", a.Error)
		}
		acknowledged(a.Ack)
		silence.Reset(ackWindow)
	}
}

// startV1 begins an upload of which nothing is known before its end.
func startV1(ctx context.Context, t *http.Transport, addr netip.AddrPort) (upload, error) {
	ctx, cancel := context.WithCancel(ctx)
	accepted := make(chan struct{})
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got100Continue: func() { close(accepted) }})
	body, w := io.Pipe()
	r, err := request(traced, http.MethodPost, addr, "/record", body)
	if err != nil {
		cancel()
		return upload{}, err
	}
	r.Header.Set("Expect", "100-continue")
	ended := make(chan error, 1)
	go func() {
		defer close(ended)
		defer t.CloseIdleConnections()
		defer cancel()
		res, err := t.RoundTrip(r)
		if err == nil && res.StatusCode != http.StatusOK {
			err = refused(res)
		} else if err == nil {
			_ = res.Body.Close()
		}
		_ = w.CloseWithError(io.ErrClosedPipe) // nobody reads what is still written
		if err != nil {
			ended <- err
		}
	}()
	select {
	case <-accepted:
		return upload{PipeWriter: w, ended: ended, cancel: cancel}, nil
	case err := <-ended:
		if err == nil {
			err = errors.New("it accepts a recording of which it got nothing")
		}
		return upload{}, err
	}
}

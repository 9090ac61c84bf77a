// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/remotecommand"
)

const (
	headerUpgrade       = "Upgrade"
	headerSubprotocol   = "Sec-Websocket-Protocol"
	headerStreamVersion = "X-Stream-Protocol-Version"

	protocolSPDY      = "SPDY/3.1"
	protocolWebSocket = "websocket"

	// maxPadding is how much of an unfinished frame is filled up to say something after
	// it: more than the pieces in which output comes.
	maxPadding = 64 << 10
)

// subprotocols are those of WebSocket sessions that can be recorded. The first byte of
// their messages is a channel, the rest is as the pod said it.
var subprotocols = []string{
	"", remotecommand.StreamProtocolV1Name, remotecommand.StreamProtocolV2Name, remotecommand.StreamProtocolV3Name,
	remotecommand.StreamProtocolV4Name, remotecommand.StreamProtocolV5Name,
}

// Check returns what keeps a session from being recorded that a client asks for by an
// upgrade to a protocol, with WebSocket subprotocols; or nil. The error repeats nothing
// that the client said, which may be a token.
func Check(upgrade string, offered []string) error {
	switch {
	case strings.EqualFold(upgrade, protocolSPDY):
		return nil
	case !strings.EqualFold(upgrade, protocolWebSocket):
		return fmt.Errorf("it asks for a protocol that is none of %q and %q", protocolSPDY, protocolWebSocket)
	}
	for _, name := range offered {
		if !slices.Contains(subprotocols, name) {
			return fmt.Errorf("it asks for a WebSocket subprotocol that is none of %q", subprotocols[1:])
		}
	}
	return nil
}

// follower follows one direction of a session.
type follower interface {
	// parse takes in the bytes that pass next. Its error says why they cannot be read.
	parse(p []byte) error
}

// speaker is the follower of what the pod says.
type speaker interface {
	follower
	// place returns how far what was parsed has come.
	place() place
	// farewell returns what ends the session for a client that has got everything up to
	// a place: the rest of a frame that is cut, and the message on the error stream. It
	// returns nothing where nothing can be said.
	farewell(at place, message []byte) []byte
}

// place is a place in the bytes of a session.
type place struct {
	// cut means that the client has a part of a frame that cannot be filled up.
	cut bool
	// left is how much of a frame's payload the client has not got.
	left uint64
	// open means that a WebSocket message goes on after that.
	open bool
}

// Tap returns conn, the API server's end of a session, with everything that passes it
// recorded. answer is the header of the API server's answer, which began the session.
// onLoss is called if the recording ends before the session; then an enforced one ends
// the session. Its error says why the recording cannot go on: the recorder was lost before,
// or the API server has chosen what cannot be read.
func (r *Recording) Tap(conn io.ReadWriteCloser, answer http.Header, onLoss func(error)) (io.ReadWriteCloser, error) {
	t := &tap{conn: conn, recording: r}
	version := answer.Get(headerSubprotocol)
	if strings.EqualFold(answer.Get(headerUpgrade), protocolWebSocket) {
		if !slices.Contains(subprotocols, version) {
			err := fmt.Errorf("the API server chose a WebSocket subprotocol that is none of %q", subprotocols[1:])
			r.fail(err)
			return nil, err
		}
		t.down, t.up = &webSocket{take: t.said}, &webSocket{take: t.told(r)}
	} else {
		version = answer.Get(headerStreamVersion)
		streams := &spdyStreams{}
		t.down = &spdySession{streams: streams, take: t.said}
		t.up = &spdySession{streams: streams, fromClient: true, take: t.told(r)}
	}
	t.statuses = version == remotecommand.StreamProtocolV4Name || version == remotecommand.StreamProtocolV5Name
	err := r.begin(func(err error) {
		onLoss(err)
		if r.enforced {
			_ = conn.Close() // ends a Read that waits
		}
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// errLost ends the session of an enforced recording that is lost.
var errLost = errors.New("the recording of this session is lost")

// tap is the API server's end of a session that is recorded. One goroutine reads, one
// writes.
type tap struct {
	conn      io.ReadWriteCloser
	recording *Recording
	down      speaker  // of the reader
	up        follower // of the writer
	// statuses says that the error stream carries a metav1.Status, and not words.
	statuses bool
	over     bool   // the reader has ended the session
	last     []byte // what it has left to say
}

// said takes what the pod says.
func (t *tap) said(from stream, p []byte) error {
	if from != stdout && from != stderr {
		return nil
	}
	return t.recording.output(from, p)
}

// told returns what takes what the client tells: only the size of its terminal counts.
func (t *tap) told(r *Recording) func(stream, []byte) error {
	s := &sizes{tell: r.resize}
	return func(on stream, p []byte) error {
		if on == resize {
			s.write(p)
		}
		return nil
	}
}

// Read returns what the pod says, after it was recorded. A session that must be recorded
// and cannot be ends with a farewell.
func (t *tap) Read(p []byte) (int, error) {
	for !t.over {
		at := t.down.place() // of what the client has got
		n, err := t.conn.Read(p)
		if failed := t.follow(t.down, p[:n]); failed != nil {
			_ = t.conn.Close()
			t.over, t.last = true, t.down.farewell(at, t.message())
			break
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
	if len(t.last) == 0 {
		return 0, io.EOF
	}
	n := copy(p, t.last)
	t.last = t.last[n:]
	return n, nil
}

// follow lets f parse what passes next, and returns why nothing more may pass.
func (t *tap) follow(f follower, p []byte) error {
	if t.recording.failed() == nil && len(p) > 0 {
		if err := f.parse(p); err != nil {
			t.recording.fail(err)
		}
	}
	if t.recording.enforced {
		return t.recording.failed()
	}
	return nil
}

const farewellSentence = "The recording of this session was lost, and the tailnet policy demands one (enforceRecorder). So the session was ended. Try again; if it lasts, the log of the proxy says why."

// message returns what the error stream says at the end of a lost session.
func (t *tap) message() []byte {
	if !t.statuses {
		return []byte(farewellSentence)
	}
	message, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Code: http.StatusServiceUnavailable, Reason: metav1.StatusReasonServiceUnavailable, Message: farewellSentence,
	})
	if err != nil {
		return nil
	}
	return message
}

// Write sends what the client says to the pod, unless the session may not go on.
func (t *tap) Write(p []byte) (int, error) {
	if failed := t.follow(t.up, p); failed != nil {
		return 0, fmt.Errorf("%w: %w", errLost, failed)
	}
	return t.conn.Write(p)
}

// Close closes the API server's end.
func (t *tap) Close() error { return t.conn.Close() }

// CloseWrite tells the API server that the client has sent everything.
func (t *tap) CloseWrite() error {
	half, ok := t.conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

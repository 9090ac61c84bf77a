// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Opcodes of RFC 6455 section 5.2.
const (
	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPong         = 10
)

// Channels of the WebSocket protocols *.channel.k8s.io: the first byte of a message.
var channels = map[byte]stream{1: stdout, 2: stderr, 3: errorStream, 4: resize}

// errorChannel is that of errorStream.
const errorChannel = 3

// webSocket follows one direction of a WebSocket session.
type webSocket struct {
	// take gets what a message says on a channel, in pieces.
	take func(stream, []byte) error

	header  [14]byte // of the frame that begins
	have    int      // bytes of header
	left    uint64   // bytes of the frame's payload to come
	inFrame bool
	op      byte
	final   bool
	masked  bool
	mask    [4]byte
	at      int // bytes of the payload that have passed, modulo 4

	inMessage bool // a message goes on in the next data frame
	named     bool // the message has told its channel
	channel   stream
}

// parse takes in the next bytes.
func (w *webSocket) parse(p []byte) error {
	for len(p) > 0 {
		if !w.inFrame {
			n, err := w.parseHeader(p)
			if err != nil {
				return err
			}
			p = p[n:]
			continue
		}
		n := int(min(w.left, uint64(len(p)))) //nolint:gosec // not more than len(p)
		if err := w.parsePayload(p[:n]); err != nil {
			return err
		}
		if w.left -= uint64(n); w.left == 0 {
			w.endFrame()
		}
		p = p[n:]
	}
	return nil
}

// headerLength returns the length of a header by its first two bytes.
func headerLength(second byte) int {
	n := 2
	switch second & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if second&0x80 != 0 {
		n += 4
	}
	return n
}

// parseHeader takes in bytes of a header and returns how many.
func (w *webSocket) parseHeader(p []byte) (n int, err error) {
	for n < len(p) {
		w.header[w.have] = p[n]
		w.have++
		n++
		if w.have >= 2 && w.have == headerLength(w.header[1]) {
			return n, w.beginFrame()
		}
	}
	return n, nil
}

// payloadLength returns the length of a payload by its header.
func payloadLength(header []byte) uint64 {
	switch length := header[1] & 0x7f; length {
	case 126:
		return uint64(binary.BigEndian.Uint16(header[2:]))
	case 127:
		return binary.BigEndian.Uint64(header[2:])
	default:
		return uint64(length)
	}
}

func (w *webSocket) beginFrame() error {
	h := w.header[:w.have]
	w.have = 0
	w.final, w.op, w.masked = h[0]&0x80 != 0, h[0]&0x0f, h[1]&0x80 != 0
	if h[0]&0x70 != 0 {
		return errors.New("a WebSocket frame with extensions")
	}
	w.left = payloadLength(h)
	if w.left > 1<<63-1 {
		return errors.New("a WebSocket frame of impossible length")
	}
	if w.masked {
		copy(w.mask[:], h[len(h)-4:])
	}
	switch {
	case w.op >= opClose && w.op <= opPong:
		if !w.final || w.left > 125 {
			return errors.New("a WebSocket control frame that is none")
		}
	case w.op == opContinuation && w.inMessage:
	case (w.op == opText || w.op == opBinary) && !w.inMessage:
		w.inMessage, w.named = true, false
	default:
		return fmt.Errorf("an unexpected WebSocket frame (opcode %d)", w.op)
	}
	w.at, w.inFrame = 0, true
	if w.left == 0 {
		w.endFrame()
	}
	return nil
}

func (w *webSocket) endFrame() {
	w.inFrame = false
	if w.final && w.op < opClose {
		w.inMessage = false
	}
}

// parsePayload takes in bytes of a payload.
func (w *webSocket) parsePayload(p []byte) error {
	if w.op >= opClose {
		return nil
	}
	if !w.named {
		w.named, w.channel = true, channels[w.unmask(p[0])]
		p = p[1:]
	}
	if len(p) == 0 || w.channel == other {
		w.at = (w.at + len(p)) % 4
		return nil
	}
	if !w.masked {
		return w.take(w.channel, p)
	}
	// Only what a client tells is masked; little of that is looked at.
	var plain [512]byte
	for len(p) > 0 {
		n := min(len(p), len(plain))
		for i, b := range p[:n] {
			plain[i] = w.unmask(b)
		}
		if err := w.take(w.channel, plain[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// unmask returns the next byte of the payload as it was before it was masked.
func (w *webSocket) unmask(b byte) byte {
	if w.masked {
		b ^= w.mask[w.at]
	}
	w.at = (w.at + 1) % 4
	return b
}

func (w *webSocket) place() place {
	p := place{cut: w.have > 0, open: w.inMessage}
	if w.inFrame {
		p.left = w.left
		p.open = w.inMessage && (!w.final || w.op >= opClose)
	}
	return p
}

func (w *webSocket) farewell(at place, message []byte) []byte {
	if at.cut || at.left > maxPadding {
		return nil
	}
	b := make([]byte, at.left)
	if at.open {
		b = append(b, 0x80|opContinuation, 0)
	}
	b = append(b, 0x80|opBinary, 126)
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)+1)) //nolint:gosec // a sentence
	b = append(append(b, errorChannel), message...)
	return append(b, 0x80|opClose, 2, 1000>>8, 1000&0xff) // normal closure
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/moby/spdystream/spdy"
	corev1 "k8s.io/api/core/v1"
)

const (
	spdyHeader = 8
	// maxControlFrame bounds a frame of SPDY that is kept whole: one with headers. Those
	// of Kubernetes' clients have some 100 bytes.
	maxControlFrame = 32 << 10
	maxSPDYHeaders  = 64
	maxSPDYField    = 8 << 10
	// maxStreams is how many streams a client may open. A session has five at most.
	maxStreams = 64
)

// streamTypes are the values of the header streamType.
var streamTypes = map[string]stream{
	corev1.StreamTypeStdout: stdout, corev1.StreamTypeStderr: stderr, corev1.StreamTypeError: errorStream, corev1.StreamTypeResize: resize,
}

// spdyStreams are the streams that the client of a session has opened.
type spdyStreams struct {
	mu    sync.Mutex
	types map[uint32]stream
}

// open notes a stream.
func (s *spdyStreams) open(id uint32, is stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.types[id]; ok {
		return fmt.Errorf("SPDY stream %d is opened twice", id) // the first one would count
	}
	if len(s.types) >= maxStreams {
		return fmt.Errorf("more than %d SPDY streams", maxStreams)
	}
	if s.types == nil {
		s.types = map[uint32]stream{}
	}
	s.types[id] = is
	return nil
}

// of returns what a stream is.
func (s *spdyStreams) of(id uint32) (is stream, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	is, ok = s.types[id]
	return is, ok
}

// errorID returns the error stream, or 0.
func (s *spdyStreams) errorID() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, is := range s.types {
		if is == errorStream {
			return id
		}
	}
	return 0
}

// spdySession follows one direction of a SPDY/3.1 session.
type spdySession struct {
	streams    *spdyStreams
	fromClient bool
	// take gets what a stream says, in pieces.
	take func(stream, []byte) error

	header  [spdyHeader]byte // of the frame that begins
	have    int
	left    int // bytes of the frame to come
	inFrame bool
	data    bool   // the frame is a data frame
	is      stream // whose data it is
	keep    bool   // the frame is kept whole

	kept bytes.Buffer
	// framer reads from kept. It has the state of the headers' compression.
	framer *spdy.Framer
}

// parse takes in the next bytes.
func (s *spdySession) parse(p []byte) error {
	for len(p) > 0 {
		if !s.inFrame {
			n := copy(s.header[s.have:], p)
			s.have += n
			p = p[n:]
			if s.have == spdyHeader {
				if err := s.beginFrame(); err != nil {
					return err
				}
			}
			continue
		}
		n := min(s.left, len(p))
		if err := s.parsePayload(p[:n]); err != nil {
			return err
		}
		p = p[n:]
		if s.left -= n; s.left == 0 {
			if err := s.endFrame(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *spdySession) beginFrame() error {
	s.have = 0
	first, second := binary.BigEndian.Uint32(s.header[:4]), binary.BigEndian.Uint32(s.header[4:])
	s.left, s.inFrame, s.keep = int(second&0xffffff), true, false
	if s.data = first>>31 == 0; s.data {
		var known bool
		if s.is, known = s.streams.of(first); !known && !s.fromClient {
			return fmt.Errorf("data of SPDY stream %d, which nobody has opened", first)
		}
	} else if err := s.beginControl(spdy.ControlFrameType(first & 0xffff)); err != nil {
		return err
	}
	if s.left == 0 {
		return s.endFrame()
	}
	return nil
}

// beginControl begins a control frame.
func (s *spdySession) beginControl(kind spdy.ControlFrameType) error {
	switch kind {
	case spdy.TypeSynStream:
		if !s.fromClient {
			return errors.New("a SPDY stream that the pod opens")
		}
		s.keep = true
	case spdy.TypeSynReply, spdy.TypeHeaders:
		s.keep = s.fromClient // what is compressed in it is needed to read the next one
	case spdy.TypeRstStream, spdy.TypeSettings, spdy.TypePing, spdy.TypeGoAway, spdy.TypeWindowUpdate:
	default:
		return fmt.Errorf("a SPDY control frame of the unknown type %d", kind)
	}
	if s.keep {
		if s.left > maxControlFrame {
			return fmt.Errorf("SPDY headers of %d bytes", s.left)
		}
		s.kept.Reset()
		s.kept.Write(s.header[:])
	}
	return nil
}

func (s *spdySession) parsePayload(p []byte) error {
	switch {
	case s.keep:
		s.kept.Write(p)
	case s.data && s.is != other:
		return s.take(s.is, p)
	}
	return nil
}

func (s *spdySession) endFrame() error {
	s.inFrame = false
	if !s.keep {
		return nil
	}
	if s.framer == nil {
		framer, err := spdy.NewFramerWithOptions(nil, &s.kept,
			spdy.WithMaxControlFramePayloadSize(maxControlFrame), spdy.WithMaxHeaderCount(maxSPDYHeaders), spdy.WithMaxHeaderFieldSize(maxSPDYField))
		if err != nil {
			return fmt.Errorf("reading SPDY headers: %w", err)
		}
		s.framer = framer
	}
	frame, err := s.framer.ReadFrame()
	if err != nil {
		return fmt.Errorf("reading SPDY headers: %w", err)
	}
	if s.kept.Len() > 0 {
		return errors.New("a SPDY frame that is longer than its headers")
	}
	if opened, ok := frame.(*spdy.SynStreamFrame); ok {
		return s.streams.open(uint32(opened.StreamId), streamTypes[opened.Headers.Get(corev1.StreamType)])
	}
	return nil
}

func (s *spdySession) place() place {
	p := place{cut: s.have > 0 || s.inFrame && !s.data}
	if s.inFrame {
		p.left = uint64(s.left) //nolint:gosec // never negative
	}
	return p
}

func (s *spdySession) farewell(at place, message []byte) []byte {
	id := s.streams.errorID()
	if id == 0 || at.cut || at.left > maxPadding {
		return nil
	}
	b := make([]byte, at.left)
	b = binary.BigEndian.AppendUint32(b, id)
	b = binary.BigEndian.AppendUint32(b, uint32(spdy.DataFlagFin)<<24|uint32(len(message))) //nolint:gosec // a sentence
	return append(b, message...)
}

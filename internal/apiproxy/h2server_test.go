// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"k8s.io/client-go/rest"
)

// h2Server is an HTTP/2 server that answers a stream frame by frame, so that a
// test can turn requests away as a server that shuts down does.
type h2Server struct {
	config *rest.Config
	// bodies are the bodies of requests that were answered with 200.
	bodies chan string
	// attempts gets a value for each stream that was opened.
	attempts chan uint32
	// window is how much of an answer the client takes before it has been read.
	window atomic.Uint32
}

// refuse says what to do with the nth stream over all connections, from 0, once
// its header has come. It returns false to let it be answered.
type refuse func(n int, f *http2.Framer, stream uint32) (refused bool)

// newH2Server starts a server on loopback. With early, refuse is asked when a
// stream's header has come, otherwise when its body has come, too.
func newH2Server(t *testing.T, early bool, refuse refuse) *h2Server {
	t.Helper()
	tlsServer := newAPIServer(t, nil) // for its certificate
	l := listen(t)
	config := tlsServer.config()
	config.Host = "https://" + l.Addr().String()
	s := &h2Server{config: config, bodies: make(chan string, 8), attempts: make(chan uint32, 8)}
	secure := tls.NewListener(l, &tls.Config{Certificates: tlsServer.TLS.Certificates, NextProtos: []string{"h2"}})
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for n := 0; ; {
			conn, err := secure.Accept()
			if err != nil {
				return
			}
			n = s.serve(conn, n, early, refuse) // one connection at a time
		}
	}()
	return s
}

// serve serves a connection until it fails or was told to go away, and returns
// how many streams there were by then.
func (s *h2Server) serve(conn net.Conn, n int, early bool, refuse refuse) int {
	defer func() { _ = conn.Close() }()
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return n
	}
	f := http2.NewFramer(conn, conn)
	if f.WriteSettings() != nil {
		return n
	}
	bodies := map[uint32]*bytes.Buffer{}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return n
		}
		id := frame.Header().StreamID
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				window, _ := frame.Value(http2.SettingInitialWindowSize)
				s.window.Store(window)
				_ = f.WriteSettingsAck()
			}
		case *http2.HeadersFrame:
			s.attempts <- id
			bodies[id] = &bytes.Buffer{}
			if early || frame.StreamEnded() {
				n++
				if refuse(n-1, f, id) {
					delete(bodies, id)
				}
			}
			if bodies[id] != nil && frame.StreamEnded() {
				s.answer(f, id, bodies[id])
			}
		case *http2.DataFrame:
			size := uint32(len(frame.Data())) //nolint:gosec // at most a frame
			if size > 0 {
				_ = f.WriteWindowUpdate(0, size) // RFC 9113 section 6.9: also for a stream that is closed
			}
			body := bodies[id]
			if body == nil {
				continue // of a stream that was refused
			}
			body.Write(frame.Data())
			if size > 0 {
				_ = f.WriteWindowUpdate(id, size)
			}
			if !frame.StreamEnded() {
				continue
			}
			if !early {
				n++
				if refuse(n-1, f, id) {
					continue
				}
			}
			s.answer(f, id, body)
		case *http2.GoAwayFrame:
			return n
		}
	}
}

// answer answers a stream with 200.
func (s *h2Server) answer(f *http2.Framer, id uint32, body *bytes.Buffer) {
	var block bytes.Buffer
	_ = hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	s.bodies <- body.String()
	_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
}

// goAway turns away the first times streams, with a connection that ends.
func goAway(times int) refuse {
	return func(n int, f *http2.Framer, _ uint32) bool {
		if n >= times {
			return false
		}
		_ = f.WriteGoAway(0, http2.ErrCodeNo, nil)
		return true
	}
}

// refuseStream turns away the first times streams, on a connection that stays.
func refuseStream(times int) refuse {
	return func(n int, f *http2.Framer, id uint32) bool {
		if n >= times {
			return false
		}
		_ = f.WriteRSTStream(id, http2.ErrCodeRefusedStream)
		return true
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"tailscale.com/sessionrecording"
)

// patience bounds what should take milliseconds, on a machine that does much else.
const patience = time.Minute

// server is a recorder that keeps what it gets in memory.
type server struct {
	*httptest.Server
	addr netip.AddrPort
	// versions are those of the protocol that it speaks.
	versions []int
	// refuse answers recordings with 503.
	refuse bool
	// lose ends a recording after as many bytes, without a word; 0: never.
	lose int

	mu    sync.Mutex
	cast  bytes.Buffer
	whole bool          // the first recording has ended as it should; known when done is closed
	done  chan struct{} // closed at the end of the first recording
	once  sync.Once
}

func newServer(t *testing.T, change func(*server)) *server {
	t.Helper()
	s := &server{versions: []int{1, 2}, done: make(chan struct{})}
	if change != nil {
		change(s)
	}
	mux := http.NewServeMux()
	for _, version := range s.versions {
		switch version {
		case 1:
			mux.HandleFunc("POST /record", s.record)
		case 2:
			mux.HandleFunc("HEAD /v2/record", func(http.ResponseWriter, *http.Request) {})
			mux.HandleFunc("POST /v2/record", s.recordV2)
		}
	}
	s.Server = httptest.NewUnstartedServer(mux)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	s.addr = netip.MustParseAddrPort(s.Listener.Addr().String())
	return s
}

func (s *server) record(w http.ResponseWriter, r *http.Request) {
	if s.refuse {
		http.Error(w, "full", http.StatusServiceUnavailable)
		return
	}
	s.take(r.Body, func(int) {})
}

func (s *server) recordV2(w http.ResponseWriter, r *http.Request) {
	if s.refuse {
		http.Error(w, "full", http.StatusServiceUnavailable)
		return
	}
	response, frames := http.NewResponseController(w), json.NewEncoder(w)
	_ = response.Flush()
	s.take(r.Body, func(got int) {
		_ = frames.Encode(map[string]int{"ack": got})
		_ = response.Flush()
	})
}

// take keeps a body.
func (s *server) take(body io.Reader, ack func(int)) {
	b := make([]byte, 4096)
	for total := 0; ; {
		n, err := body.Read(b)
		s.mu.Lock()
		s.cast.Write(b[:n])
		s.mu.Unlock()
		total += n
		ack(total)
		if s.lose > 0 && total >= s.lose {
			panic(http.ErrAbortHandler)
		}
		if err != nil {
			s.once.Do(func() {
				s.whole = errors.Is(err, io.EOF)
				close(s.done)
			})
			return
		}
	}
}

// text is what the recorder has.
func (s *server) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cast.String()
}

// event is a line of an asciicast but the first.
type event struct{ kind, text string }

// parseCast reads an asciicast and checks that its times go forward.
func parseCast(t *testing.T, text string) (h sessionrecording.CastHeader, events []event) {
	t.Helper()
	head, rest, _ := strings.Cut(text, "\n")
	if err := json.Unmarshal([]byte(head), &h); err != nil {
		t.Fatalf("header %q: %v", head, err)
	}
	last := 0.0
	for line := range strings.Lines(rest) {
		var at float64
		var e event
		if err := json.Unmarshal([]byte(line), &[]any{&at, &e.kind, &e.text}); err != nil || at < last {
			t.Fatalf("event %q: %v", line, err)
		}
		last = at
		events = append(events, e)
	}
	return h, events
}

// outputOf joins what events of the kind "o" say.
func outputOf(events []event) string {
	var b strings.Builder
	for _, e := range events {
		if e.kind == "o" {
			b.WriteString(e.text)
		}
	}
	return b.String()
}

func (e event) String() string { return fmt.Sprintf("%s %q", e.kind, e.text) }

// end is one of the two ends of a session: a connection in memory.
type end struct {
	io.Reader
	written bytes.Buffer
	closed  chan struct{}
	once    sync.Once
}

func newEnd(r io.Reader) *end { return &end{Reader: r, closed: make(chan struct{})} }

func (e *end) Write(p []byte) (int, error) { return e.written.Write(p) }

func (e *end) Close() error {
	e.once.Do(func() { close(e.closed) })
	if c, ok := e.Reader.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// pieces returns p in reads of n bytes.
func pieces(p []byte, n int) io.Reader { return &pieceReader{bytes.NewReader(p), n} }

type pieceReader struct {
	io.Reader
	n int
}

func (r *pieceReader) Read(p []byte) (int, error) { return r.Reader.Read(p[:min(len(p), r.n)]) }

var dialer = new(net.Dialer).DialContext

func receive[T any](t *testing.T, c <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("waiting for %s", what)
	}
	return v
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener whose connections are in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	conn, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (p pipes) Close() error {
	close(p)
	return nil
}

func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// inBubble runs a test with time and a recorder of its own. The bubble fails the test
// if a goroutine is left.
func inBubble(t *testing.T, record http.HandlerFunc, test func(t *testing.T, r *Recorders)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		mux := http.NewServeMux()
		mux.HandleFunc("HEAD /v2/record", func(http.ResponseWriter, *http.Request) {})
		mux.HandleFunc("POST /v2/record", record)
		server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Hour, Protocols: new(http.Protocols)}
		server.Protocols.SetUnencryptedHTTP2(true)
		l := make(pipes)
		go func() { _ = server.Serve(l) }()
		test(t, NewRecorders(l.dial))
		_ = server.Close()
	})
}

// A recorder that says nothing for too long is lost, though its connection is alive.
func TestSilentRecorder(t *testing.T) {
	inBubble(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		_, _ = io.Copy(io.Discard, r.Body)
	}, func(t *testing.T, recorders *Recorders) {
		r, err := recorders.Connect(t.Context(), []netip.AddrPort{first}, true)
		if err != nil {
			t.Fatal(err)
		}
		lost := make(chan error, 1)
		start := time.Now()
		if _, err := r.Tap(newEnd(bytes.NewReader(nil)), webSocketAnswer, testSession, func(err error) { lost <- err }); err != nil {
			t.Fatal(err)
		}
		if err := <-lost; !errors.Is(err, errNoAcks) || time.Since(start) != ackWindow {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		_ = r.Finish()
	})
}

// A recorder that ends the recording says why.
func TestRecorderGivesUp(t *testing.T) {
	for name, tc := range map[string]struct{ says, want string }{
		"an error": {`{"ack":1}{"error":"disk full"}`, "disk full"}, "nothing": {`{"ack":1}`, errEnded.Error()},
		"nonsense": {"}", "invalid character"}, "too much": {`{"error":"` + strings.Repeat("x", maxAck) + `"}`, errAckTooLong.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, tc.says) }, func(t *testing.T, recorders *Recorders) {
				r, err := recorders.Connect(t.Context(), []netip.AddrPort{first}, true)
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				_, err = r.Tap(newEnd(bytes.NewReader(nil)), webSocketAnswer, testSession, func(error) {})
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error %v, want %q", err, tc.want)
				}
				_ = r.Finish()
			})
		})
	}
}

// A recorder that refuses is told apart at once, and leaves nothing behind.
func TestRecorderRefuses(t *testing.T) {
	inBubble(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "disk full", http.StatusInsufficientStorage)
	}, func(t *testing.T, r *Recorders) {
		start := time.Now()
		_, err := r.Connect(t.Context(), []netip.AddrPort{first}, true)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf(`recorder %s: it answers 507 Insufficient Storage: "disk full`, first)) || time.Since(start) > 0 {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

// A recorder whose connection dies without a word is noticed while nothing is recorded.
func TestDeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := make(pipes)
		server := &http.Server{ReadHeaderTimeout: time.Hour, Protocols: new(http.Protocols)}
		server.Protocols.SetUnencryptedHTTP2(true)
		var dead deadConn
		server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPost {
				_ = http.NewResponseController(w).Flush()
				_, _ = io.Copy(io.Discard, r.Body)
			}
		})
		go func() { _ = server.Serve(l) }()
		r, err := NewRecorders(func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := l.dial(ctx, network, address)
			dead = deadConn{Conn: conn, dead: make(chan struct{})}
			return &dead, err
		}).Connect(t.Context(), []netip.AddrPort{first}, true)
		if err != nil {
			t.Fatal(err)
		}
		lost := make(chan error, 1)
		start := time.Now()
		if _, err := r.Tap(newEnd(bytes.NewReader(nil)), webSocketAnswer, testSession, func(err error) { lost <- err }); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		close(dead.dead)
		if err := <-lost; time.Since(start) > pingAfter+pingTimeout {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		_ = r.Finish()
		_ = server.Close()
	})
}

// deadConn drops what is written once it is dead.
type deadConn struct {
	net.Conn
	dead chan struct{}
}

func (c *deadConn) Write(p []byte) (int, error) {
	select {
	case <-c.dead:
		return len(p), nil
	default:
		return c.Conn.Write(p)
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bufio"
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

	"tailscale.com/sessionrecording"
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

// inBubble runs a test with time and a recorder of its own, at the address first. Nothing
// answers at others. The bubble fails the test if a goroutine is left.
func inBubble(t *testing.T, record http.HandlerFunc, test func(t *testing.T, r *Recorders)) {
	t.Helper()
	inBubbleWithEvents(t, record, func(http.ResponseWriter, *http.Request) {}, test)
}

// inBubbleWithEvents is inBubble whose recorder answers events.
func inBubbleWithEvents(t *testing.T, record, event http.HandlerFunc, test func(t *testing.T, r *Recorders)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		mux := http.NewServeMux()
		mux.HandleFunc("HEAD /v2/record", func(http.ResponseWriter, *http.Request) {})
		mux.HandleFunc("POST /v2/record", record)
		mux.HandleFunc("POST /v2/event", event)
		server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Hour, Protocols: new(http.Protocols)}
		server.Protocols.SetHTTP1(true)
		server.Protocols.SetUnencryptedHTTP2(true)
		l := make(pipes)
		go func() { _ = server.Serve(l) }()
		recorders := NewRecorders(func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != first.String() {
				return hang(ctx, network, address)
			}
			return l.dial(ctx, network, address)
		})
		test(t, recorders)
		recorders.events.CloseIdleConnections()
		_ = server.Close()
	})
}

// acknowledge tells the client that its recording has begun.
func acknowledge(w http.ResponseWriter) {
	_, _ = fmt.Fprintf(w, `{"ack":%d}`, maxHeader)
	_ = http.NewResponseController(w).Flush()
}

// A session that must be recorded waits until the recorder has acknowledged the first
// line; another one only until that is sent. What a recorder acknowledges before does not
// count.
func TestIntroduction(t *testing.T) {
	for name, tc := range map[string]struct {
		late  time.Duration // until the acknowledgement; 0: never
		waits time.Duration
		err   error
	}{
		"never": {0, ackWindow, errUnacknowledged}, "late": {20 * time.Second, 20 * time.Second, nil},
	} {
		for _, enforced := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, enforced: %v", name, enforced), func(t *testing.T) {
				got := make(chan string, 1)
				inBubble(t, func(w http.ResponseWriter, r *http.Request) {
					flush := http.NewResponseController(w).Flush
					_ = flush()
					line, _ := bufio.NewReader(r.Body).ReadString('\n')
					got <- line
					tick := time.NewTicker(time.Second)
					defer tick.Stop()
					for begun := time.Now(); ; _ = flush() {
						select {
						case <-tick.C:
						case <-r.Context().Done():
							return
						}
						if has := time.Since(begun); tc.late > 0 && has >= tc.late {
							_, _ = fmt.Fprintf(w, `{"ack":%d}`, len(line))
						} else {
							_, _ = fmt.Fprintf(w, `{"ack":%d}`, len(line)-1)
						}
					}
				}, func(t *testing.T, recorders *Recorders) {
					start := time.Now()
					r, err := recorders.Connect(t.Context(), []netip.AddrPort{first}, testSession, enforced)
					want, wantErr := tc.waits, tc.err
					if !enforced {
						want, wantErr = 0, nil
					}
					if took := time.Since(start); took != want || !errors.Is(err, wantErr) {
						t.Errorf("after %s: %v, want %v after %s", took, err, wantErr, want)
					}
					if h, _ := parseCast(t, <-got); h.Command != testSession.Header.Command {
						t.Errorf("the first line has %+v", h)
					}
					if r != nil {
						r.fail(errors.New("the end of the test"))
						_ = r.Finish()
					}
				})
			})
		}
	}
}

// A recorder that says nothing for too long is lost, though its connection is alive.
func TestSilentRecorder(t *testing.T) {
	inBubble(t, func(w http.ResponseWriter, r *http.Request) {
		acknowledge(w)
		_, _ = io.Copy(io.Discard, r.Body)
	}, func(t *testing.T, recorders *Recorders) {
		r, err := recorders.Connect(t.Context(), []netip.AddrPort{first}, testSession, true)
		if err != nil {
			t.Fatal(err)
		}
		lost := make(chan error, 1)
		start := time.Now()
		if _, err := r.Tap(newEnd(bytes.NewReader(nil)), webSocketAnswer, func(err error) { lost <- err }); err != nil {
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
			inBubble(t, func(w http.ResponseWriter, r *http.Request) {
				_ = http.NewResponseController(w).Flush()
				if line, _ := bufio.NewReader(r.Body).ReadString('\n'); strings.Contains(line, "acknowledged") {
					acknowledge(w)
				}
				_, _ = io.WriteString(w, tc.says)
			}, func(t *testing.T, recorders *Recorders) {
				// Before it has the first line, and after that.
				_, err := recorders.Connect(t.Context(), []netip.AddrPort{first}, testSession, true)
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error %v, want %q", err, tc.want)
				}
				r, err := recorders.Connect(t.Context(), []netip.AddrPort{first}, Session{Header: sessionrecording.CastHeader{Command: "acknowledged"}}, true)
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				_, err = r.Tap(newEnd(bytes.NewReader(nil)), webSocketAnswer, func(error) {})
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
		_, err := r.Connect(t.Context(), []netip.AddrPort{first}, testSession, true)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf(`recorder %s: it answers 507 Insufficient Storage: "disk full`, first)) || time.Since(start) > 0 {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		if asked := r.silent.order([]netip.AddrPort{first}, false); len(asked) != 1 {
			t.Error("a recorder that refuses is asked nothing more")
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
				acknowledge(w)
				_, _ = io.Copy(io.Discard, r.Body)
			}
		})
		go func() { _ = server.Serve(l) }()
		r, err := NewRecorders(func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := l.dial(ctx, network, address)
			dead = deadConn{Conn: conn, dead: make(chan struct{})}
			return &dead, err
		}).Connect(t.Context(), []netip.AddrPort{first}, testSession, true)
		if err != nil {
			t.Fatal(err)
		}
		lost := make(chan error, 1)
		start := time.Now()
		if _, err := r.Tap(newEnd(bytes.NewReader(nil)), webSocketAnswer, func(err error) { lost <- err }); err != nil {
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

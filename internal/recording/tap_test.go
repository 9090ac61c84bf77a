// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/spdystream/spdy"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"tailscale.com/sessionrecording"
)

// Answers of an API server that begin a session.
var (
	webSocketAnswer = http.Header{"Upgrade": {"websocket"}, "Sec-Websocket-Protocol": {"v5.channel.k8s.io"}}
	spdyAnswer      = http.Header{"Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {"v4.channel.k8s.io"}}
)

var testSession = Session{Header: sessionrecording.CastHeader{SrcNode: "laptop.example.ts.net", Command: "sh -c ls"}}

// connect connects to a recorder.
func connect(t *testing.T, s *server, enforced bool) *Recording {
	t.Helper()
	return connectFor(t, s, testSession, enforced)
}

func connectFor(t *testing.T, s *server, session Session, enforced bool) *Recording {
	t.Helper()
	r, err := NewRecorders(dialer).Connect(t.Context(), []netip.AddrPort{s.addr}, session, enforced)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A recording holds what the pod says, over each version of the protocol, and the
// session passes as it is.
func TestRecording(t *testing.T) {
	pod := frames(
		ws{first: 0x82, payload: "\x01h\xc3"}, ws{first: 0x82, payload: "\x02err\xe2\x82"}, ws{first: 0x82, payload: "\x01\xa9llo \"\\\x1b[0m<&>\r\n"}, // é, cut
		ws{first: 0x02, payload: "\x02\xac"}, ws{first: 0x80, payload: "\xff\x00"}, ws{first: 0x82, payload: "\x03{}"}, ws{first: 0x82, payload: "\x01\xf0\x9f"}, // €, cut; no UTF-8; cut for good: two bytes
	)
	client := frames(ws{first: 0x82, payload: "\x00secret", mask: "abcd"}, ws{first: 0x82, payload: "\x04{\"Width\":1,\"Height\":2}", mask: "abcd"})
	for _, version := range []int{1, 2} {
		for _, n := range []int{1, 5, 4096} {
			t.Run(fmt.Sprintf("version %d, by %d", version, n), func(t *testing.T) {
				s := newServer(t, func(s *server) { s.versions = []int{version} })
				r := connect(t, s, true)
				conn := newEnd(pieces(pod, n))
				session, err := r.Tap(conn, webSocketAnswer, func(err error) { t.Errorf("lost: %v", err) })
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(session)
				if err != nil || !bytes.Equal(got, pod) {
					t.Errorf("the client gets %q, %v", got, err)
				}
				if _, err := session.Write(client); err != nil || !bytes.Equal(conn.written.Bytes(), client) {
					t.Errorf("the pod gets %q, %v", conn.written.Bytes(), err)
				}
				if err := r.Finish(); err != nil {
					t.Fatal(err)
				}
				receive(t, s.done, "the end of the recording")
				h, events := parseCast(t, s.text())
				if h.Version != 2 || h.Width != 0 || h.Height != 0 || h.Timestamp == 0 || h.SrcNode != testSession.Header.SrcNode || h.Command != "sh -c ls" {
					t.Errorf("header %+v", h)
				}
				if want := "hérr"; n == 4096 && events[0] != (event{"o", "h"}) {
					t.Errorf("events %v, want %s", events, want)
				}
				if out, want := outputOf(events), "herréllo \"\\\x1b[0m<&>\r\n€�\x00��"; out != want {
					t.Errorf("recorded %q, want %q", out, want)
				}
				if strings.Contains(s.text(), "secret") {
					t.Error("standard input is recorded")
				}
			})
		}
	}
}

// The size of a terminal comes before all output though it was told later, and later
// sizes are events, too.
func TestTerminal(t *testing.T) {
	sizeFrame := func(text string) []byte { return frames(ws{first: 0x82, payload: "\x04" + text, mask: "abcd"}) }
	spdyClient := newClient(t).send(open(1, "error"), open(3, "stdout"), open(257, "resize"))
	spdySize := func(text string) []byte {
		c := &client{t: t}
		c.Framer, _ = spdy.NewFramer(&c.Buffer, nil)
		return c.send(data(257, text)).Bytes()
	}
	for name, tc := range map[string]struct {
		answer http.Header
		pod    []byte
		before []byte
		size   func(string) []byte
	}{
		"WebSocket": {webSocketAnswer, frames(ws{first: 0x82, payload: "\x01$ "}), nil, sizeFrame},
		"SPDY":      {spdyAnswer, newClient(t).send(data(3, "$ ")).Bytes(), spdyClient.Bytes(), spdySize},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, nil)
			r := connectFor(t, s, Session{TTY: true}, true)
			session, err := r.Tap(newEnd(bytes.NewReader(tc.pod)), tc.answer, func(err error) { t.Errorf("lost: %v", err) })
			if err != nil {
				t.Fatal(err)
			}
			write := func(p []byte) {
				if _, err := session.Write(p); err != nil {
					t.Fatal(err)
				}
			}
			write(tc.before)
			if _, err := io.ReadAll(session); err != nil {
				t.Fatal(err)
			}
			write(tc.size(`{"Width":99,`))
			write(tc.size(`"Height":44}` + "\n" + `{"width":120,"height":50}garbage}{"Width":0,"Height":0}`))
			if err := r.Finish(); err != nil {
				t.Fatal(err)
			}
			receive(t, s.done, "the end of the recording")
			h, events := parseCast(t, s.text())
			if h.Width != 80 || h.Height != 24 {
				t.Errorf("header %+v", h)
			}
			if want := []event{{"r", "99x44"}, {"o", "$ "}, {"r", "120x50"}}; !slices.Equal(events, want) {
				t.Errorf("events %v, want %v", events, want)
			}
		})
	}
}

// fakeUpload is an upload in memory.
type fakeUpload struct {
	*io.PipeReader
	ended  chan error
	cancel context.CancelFunc
}

func newFake(enforced bool) (*Recording, *fakeUpload) { return newFakeFor(testSession, enforced) }

func newFakeFor(s Session, enforced bool) (*Recording, *fakeUpload) {
	pr, pw := io.Pipe()
	f := &fakeUpload{PipeReader: pr, ended: make(chan error, 1)}
	done := false
	f.cancel = func() {
		_ = pr.CloseWithError(context.Canceled)
		if !done {
			done = true
			close(f.ended)
		}
	}
	return newRecording(netip.MustParseAddrPort("100.64.0.9:80"), upload{PipeWriter: pw, ended: f.ended, cancel: f.cancel}, s, time.Now(), enforced), f
}

// A terminal that never tells its size is recorded all the same.
func TestTerminalWithoutSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, up := newFakeFor(Session{TTY: true}, true)
		start := time.Now()
		session, err := r.Tap(newEnd(bytes.NewReader(frames(ws{first: 0x82, payload: "\x01$ "}))), webSocketAnswer, func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(session); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 1<<10)
		n, err := up.Read(line)
		if want := `[0.000000,"o","$ "]` + "\n"; err != nil || string(line[:n]) != want || time.Since(start) != sizeWait {
			t.Errorf("after %s: %q, %v", time.Since(start), line[:n], err)
		}
		up.cancel()
		_ = r.Finish()
	})
}

// farewellOf reads the end of a session and returns what the error stream says.
func webSocketFarewell(t *testing.T, got []byte) string {
	t.Helper()
	var heard listener
	w := &webSocket{take: heard.take}
	if err := w.parse(got); err != nil || w.have > 0 || w.inFrame || w.inMessage {
		t.Errorf("the session ends in the middle of %q (%v)", got, err)
	}
	if !bytes.HasSuffix(got, []byte{0x88, 2, 3, 0xe8}) {
		t.Errorf("the session ends without a close frame: %q", got)
	}
	return string(heard[errorStream])
}

func spdyFarewell(t *testing.T, got []byte) string {
	t.Helper()
	framer, err := spdy.NewFramer(nil, bytes.NewReader(got))
	if err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("the session ends without a farewell: %v in %q", err, got)
		}
		if d, ok := frame.(*spdy.DataFrame); ok && d.StreamId == 1 {
			if d.Flags != spdy.DataFlagFin {
				t.Errorf("flags %v", d.Flags)
			}
			return string(d.Data)
		}
	}
}

// The session of an enforced recording ends when its recorder is lost, with a message
// in the client's own error stream, wherever the last frame was cut.
func TestEnforcedLoss(t *testing.T) {
	wsFrames := frames(ws{first: 0x82, payload: "\x01abc"}, ws{first: 0x02, payload: "\x01def"}, ws{first: 0x80, payload: "ghi"})
	spdyFrames := newClient(t).send(data(5, "abcdef"), data(5, "ghi")).Bytes()
	for name, tc := range map[string]struct {
		answer   http.Header
		opening  []byte
		passed   []byte // what has passed when the recorder is lost
		farewell func(*testing.T, []byte) string
	}{
		"WebSocket":                       {webSocketAnswer, nil, wsFrames, webSocketFarewell},
		"WebSocket, at the beginning":     {webSocketAnswer, nil, nil, webSocketFarewell},
		"WebSocket, in a frame":           {webSocketAnswer, nil, wsFrames[:4], webSocketFarewell},
		"WebSocket, in a fragment":        {webSocketAnswer, nil, wsFrames[:10], webSocketFarewell},
		"WebSocket, between fragments":    {webSocketAnswer, nil, wsFrames[:12], webSocketFarewell},
		"WebSocket, in the last fragment": {webSocketAnswer, nil, wsFrames[:15], webSocketFarewell},
		"WebSocket, in a ping":            {webSocketAnswer, nil, append(slices.Clone(wsFrames[:12]), 0x89, 3, 'x'), webSocketFarewell},
		"WebSocket, in a header":          {webSocketAnswer, nil, wsFrames[:1], nil},
		"SPDY":                            {spdyAnswer, newClient(t).send(open(1, "error"), open(5, "stdout")).Bytes(), spdyFrames, spdyFarewell},
		"SPDY, in a frame":                {spdyAnswer, newClient(t).send(open(1, "error"), open(5, "stdout")).Bytes(), spdyFrames[:11], spdyFarewell},
		"SPDY, in a header":               {spdyAnswer, newClient(t).send(open(1, "error"), open(5, "stdout")).Bytes(), spdyFrames[:5], nil},
		"SPDY, no error stream":           {spdyAnswer, newClient(t).send(open(5, "stdout")).Bytes(), spdyFrames, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, nil)
			r := connect(t, s, true)
			pr, pw := io.Pipe()
			conn := newEnd(pr)
			lost := make(chan error, 1)
			session, err := r.Tap(conn, tc.answer, func(err error) { lost <- err })
			if err != nil {
				t.Fatal(err)
			}
			if _, err := session.Write(tc.opening); err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = pw.Write(tc.passed) }()
			got := make([]byte, len(tc.passed))
			if _, err := io.ReadFull(session, got); err != nil || !bytes.Equal(got, tc.passed) {
				t.Fatalf("before the loss: %q, %v", got, err)
			}
			s.CloseClientConnections() // while the session is idle
			rest, err := io.ReadAll(session)
			if err != nil {
				t.Errorf("the session ends with %v", err)
			}
			receive(t, conn.closed, "the end of the pod's connection")
			if receive(t, lost, "the loss") == nil {
				t.Error("it was lost for no reason")
			}
			if _, err := session.Write([]byte("rm -rf /\n")); !errors.Is(err, errLost) || strings.Contains(conn.written.String(), "rm") {
				t.Errorf("after the loss the pod gets %q, %v", conn.written.Bytes(), err)
			}
			if r.Finish() == nil {
				t.Error("the recording is whole")
			}
			if tc.farewell == nil {
				if len(rest) > 0 {
					t.Errorf("something is said where nothing can be: %q", rest)
				}
				return
			}
			var status metav1.Status
			if err := json.Unmarshal([]byte(tc.farewell(t, append(got, rest...))), &status); err != nil {
				t.Fatal(err)
			}
			if status.Status != metav1.StatusFailure || !strings.Contains(status.Message, "recording of this session was lost") {
				t.Errorf("the client is told %+v", status)
			}
		})
	}
}

// Clients of older protocols are told in words.
func TestFarewellInWords(t *testing.T) {
	r, up := newFake(true)
	session, err := r.Tap(newEnd(bytes.NewReader([]byte{0xf0, 0})), http.Header{"Upgrade": {"websocket"}}, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, up) }()
	got, err := io.ReadAll(session)
	if said := webSocketFarewell(t, got); err != nil || said != farewellSentence {
		t.Errorf("told %q, %v", said, err)
	}
	_ = r.Finish()
}

// What cannot be read ends the session of an enforced recording before it passes, and
// no other.
func TestUnreadable(t *testing.T) {
	garbage := []byte{0xf0, 0x80, 0x80, 3, 0, 5, 0, 0}
	for _, answer := range []http.Header{webSocketAnswer, spdyAnswer} {
		for _, enforced := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, enforced: %v", answer.Get("Upgrade"), enforced), func(t *testing.T) {
				bad := garbage
				if answer.Get("Upgrade") == "SPDY/3.1" {
					bad = garbage[2:]
					bad = append(slices.Clone(bad), 0, 0)
				}
				for _, fromPod := range []bool{true, false} {
					r, up := newFake(enforced)
					go func() { _, _ = io.Copy(io.Discard, up) }()
					conn := newEnd(bytes.NewReader(bad))
					session, err := r.Tap(conn, answer, func(error) {})
					if err != nil {
						t.Fatal(err)
					}
					var passed []byte
					if fromPod {
						passed, _ = io.ReadAll(session)
					} else {
						_, err = session.Write(bad)
						passed = conn.written.Bytes()
						if (err != nil) != enforced {
							t.Errorf("writing: %v", err)
						}
					}
					if bytes.Contains(passed, bad) == enforced {
						t.Errorf("from the pod: %v: %q passes", fromPod, passed)
					}
					if r.Finish() == nil {
						t.Error("the recording is whole")
					}
				}
			})
		}
	}
}

// A recorder that takes nothing slows the pod down, holds a bounded amount, and ends
// the session of an enforced recording only.
func TestStalledRecorder(t *testing.T) {
	for _, enforced := range []bool{true, false} {
		t.Run(fmt.Sprintf("enforced: %v", enforced), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, _ := newFake(enforced)
				frame := frames(ws{first: 0x82, payload: "\x01" + strings.Repeat("\x1b", 1<<20), long: true})
				session, err := r.Tap(newEnd(bytes.NewReader(frame)), webSocketAnswer, func(error) {})
				if err != nil {
					t.Fatal(err)
				}
				passed := make(chan int)
				go func() {
					got, _ := io.ReadAll(session)
					passed <- len(got)
				}()
				synctest.Wait()
				r.mu.Lock()
				if held := len(r.queue); held < queueLimit || held > 2*queueLimit {
					t.Errorf("%d bytes are held", held)
				}
				r.mu.Unlock()
				// Time goes on now: until the stall is noticed.
				if n := <-passed; (n >= len(frame)) == enforced {
					t.Errorf("%d of %d bytes passed", n, len(frame))
				}
				if err := r.Finish(); !errors.Is(err, errStalled) {
					t.Errorf("the recording ends with %v", err)
				}
			})
		})
	}
}

// A recorder that does not confirm the end is not waited for forever.
func TestUnconfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, up := newFake(true)
		go func() { _, _ = io.Copy(io.Discard, up) }()
		if _, err := r.Tap(newEnd(bytes.NewReader(nil)), webSocketAnswer, func(error) {}); err != nil {
			t.Fatal(err)
		}
		if err := r.Finish(); !errors.Is(err, errUnconfirmed) {
			t.Errorf("it ends with %v", err)
		}
	})
}

// A session that never begins leaves its first line, and a remark.
func TestNote(t *testing.T) {
	s := newServer(t, nil)
	r := connectFor(t, s, Session{Header: testSession.Header, TTY: true}, true)
	if h, events := parseCast(t, s.text()); h.Command != "sh -c ls" || h.Width != 80 || len(events) > 0 {
		t.Errorf("before the session: %+v, %v", h, events)
	}
	r.Note("It was refused.")
	if err := r.Finish(); err != nil {
		t.Fatal(err)
	}
	receive(t, s.done, "the end of the recording")
	if _, events := parseCast(t, s.text()); !slices.Equal(events, []event{{"m", "It was refused."}}) {
		t.Errorf("events %v", events)
	}
}

// A recording that is broken off is no whole one, and has its first line all the same.
func TestBreakOff(t *testing.T) {
	for _, version := range []int{1, 2} {
		for _, enforced := range []bool{true, false} {
			t.Run(fmt.Sprintf("version %d, enforced: %v", version, enforced), func(t *testing.T) {
				s := newServer(t, func(s *server) { s.versions = []int{version} })
				r := connect(t, s, enforced)
				why := errors.New("no answer")
				if err := r.BreakOff(why); !errors.Is(err, why) {
					t.Errorf("it ends with %v", err)
				}
				receive(t, s.done, "the end of the recording")
				if s.whole {
					t.Error("the recorder takes it for whole")
				}
				if h, events := parseCast(t, s.text()); h.Command != "sh -c ls" || len(events) > 0 {
					t.Errorf("left: %+v, %v", h, events)
				}
			})
		}
	}
}

// A session whose recording is not enforced passes untouched whatever happens: the
// recorder goes in the middle, and the bytes are no session at all.
func TestLenientPassesUntouched(t *testing.T) {
	noise := make([]byte, 100_000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	speech := frames(ws{first: 0x82, payload: "\x01" + strings.Repeat("x", 100_000), long: true})
	for name, tc := range map[string]struct {
		pod  []byte
		lose int
	}{"noise": {noise, 0}, "a lost recorder": {speech, 5000}} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, func(s *server) { s.lose = tc.lose })
			r := connect(t, s, false)
			lost := make(chan error, 1)
			conn := newEnd(pieces(tc.pod, 1000))
			session, err := r.Tap(conn, webSocketAnswer, func(err error) { lost <- err })
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(session); err != nil || !bytes.Equal(got, tc.pod) {
				t.Errorf("the client gets %d bytes (%v)", len(got), err)
			}
			if _, err := session.Write(noise); err != nil || !bytes.Equal(conn.written.Bytes(), noise) {
				t.Errorf("the pod gets %d bytes (%v)", conn.written.Len(), err)
			}
			if r.Finish() == nil || receive(t, lost, "the loss") == nil {
				t.Error("nothing was lost")
			}
		})
	}
}

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		upgrade string
		offered []string
		want    string // "" if it can be recorded
	}{
		"kubectl, WebSocket":   {"websocket", []string{"v5.channel.k8s.io"}, ""},
		"kubectl, SPDY":        {"SPDY/3.1", nil, ""},
		"capitals":             {"WebSocket", nil, ""},
		"small letters":        {"spdy/3.1", nil, ""},
		"several":              {"websocket", []string{"v4.channel.k8s.io", "v3.channel.k8s.io", "channel.k8s.io"}, ""},
		"base64":               {"websocket", []string{"base64.channel.k8s.io"}, "WebSocket subprotocol"},
		"base64 among others":  {"websocket", []string{"v5.channel.k8s.io", "v4.base64.channel.k8s.io"}, "WebSocket subprotocol"},
		"SPDY of another kind": {"SPDY/3.1, websocket", nil, "protocol that is none"},
		"HTTP/2":               {"h2c", nil, "protocol that is none"},
		"nothing":              {"", nil, "protocol that is none"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Check(tc.upgrade, tc.offered)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "base64") {
				t.Errorf("the error %v repeats what the client said", err)
			}
		})
	}
}

// An API server that chooses what cannot be read gets no recording.
func TestTapRefusesSubprotocols(t *testing.T) {
	r, _ := newFake(true)
	_, err := r.Tap(newEnd(bytes.NewReader(nil)), http.Header{"Upgrade": {"websocket"}, "Sec-Websocket-Protocol": {"base64.channel.k8s.io"}}, func(error) {})
	if err == nil {
		t.Error("it is recorded")
	}
	if ended := r.Finish(); !errors.Is(ended, err) {
		t.Errorf("the recording ends with %v, want %v", ended, err)
	}
}

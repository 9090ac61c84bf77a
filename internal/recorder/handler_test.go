// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"tailscale.com/sessionrecording"

	"github.com/tailhelm/tailhelm/internal/identity"
	"github.com/tailhelm/tailhelm/internal/recording"
)

// patience bounds what should take milliseconds, on a machine that does much else.
const patience = time.Minute

// peers says the same of every address.
type peers struct {
	identity.Identity
	err error
}

func (p peers) Identify(context.Context, netip.Addr) (identity.Identity, error) {
	return p.Identity, p.err
}

var proxyDevice = identity.Identity{Node: "operator.tail1234.ts.net", Tagged: true, Tags: []string{"tag:other", "tag:k8s"}}

// rig is a recorder that serves on loopback.
type rig struct {
	store   *Store
	handler *Handler
	addr    netip.AddrPort
	dir     string
}

func start(t *testing.T, limits Limits, who peers) *rig {
	t.Helper()
	r := &rig{dir: t.TempDir()}
	log := slog.New(slog.DiscardHandler)
	var err error
	if r.store, err = NewStore(r.dir, limits, log); err != nil {
		t.Fatal(err)
	}
	r.handler = NewHandler(HandlerConfig{Store: r.store, Peers: who, Tags: []string{"tag:k8s-operator", "tag:k8s"}, Log: log, Metrics: prometheus.NewRegistry()})
	server := NewServer(r.handler, log, prometheus.NewRegistry())
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		r.settle(t) // or the folder would be removed under a recording that is ending
	})
	r.addr = netip.MustParseAddrPort(l.Addr().String())
	return r
}

// request sends a body over HTTP/2 or HTTP/1.1.
func (r *rig) request(t *testing.T, http2 bool, method, path string, body io.Reader) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	req, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("http://%s%s", r.addr, path), body)
	if err != nil {
		t.Fatal(err)
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

// files are the recordings by their names, with their contents.
func (r *rig) files(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	list, err := List(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range list {
		text, err := os.ReadFile(info.Path)
		if err != nil {
			t.Fatal(err)
		}
		name, err := filepath.Rel(r.dir, info.Path)
		if err != nil {
			t.Fatal(err)
		}
		found[name] = string(text)
	}
	return found
}

// await waits until there are no open recordings, and returns the only file there is.
func (r *rig) await(t *testing.T, what string, ending string) (name, text string) {
	t.Helper()
	r.settle(t)
	files := r.files(t)
	if len(files) != 1 {
		t.Fatalf("%s: %d files: %v", what, len(files), files)
	}
	for name, text = range files {
		if !strings.HasPrefix(name, "operator.tail1234.ts.net/") || !strings.HasSuffix(name, ending) {
			t.Errorf("%s: the file %s, want one with the ending %s", what, name, ending)
		}
	}
	return name, text
}

// settle waits until no recording is open.
func (r *rig) settle(t *testing.T) {
	t.Helper()
	eventually(t, "the end of all recordings", func() bool { open, _ := r.store.usage(); return open == 0 })
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("waiting for %s", what)
		case <-tick.C:
		}
	}
}

const header = `{"version":2,"width":80,"height":24,"timestamp":1700000000,"srcNode":"laptop","srcNodeID":"n1","srcNodeUser":"alice@example.com","env":null,"sshUser":"","localUser":"","connectionID":"","kubernetes":{"PodName":"p","Namespace":"ns","Container":"c","SessionType":"exec"}}` + "\n"

// A session that the proxy's own code records arrives as it is, in both versions of the
// protocol.
func TestRecordingIsKept(t *testing.T) {
	for _, version := range []string{"/v2/record", "/record"} {
		t.Run(version, func(t *testing.T) {
			r := start(t, Limits{}, peers{Identity: proxyDevice})
			body := header + `[0.1,"o","hello"]` + "\n"
			res := r.request(t, version == "/v2/record", http.MethodPost, version, strings.NewReader(body))
			answer, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != http.StatusOK || bytes.Contains(answer, []byte("error")) {
				t.Fatalf("%s: %s, %v", res.Status, answer, err)
			}
			if want := fmt.Sprintf(`{"ack":%d}`+"\n", len(body)); version == "/v2/record" && !strings.HasSuffix(string(answer), want) {
				t.Errorf("the answer is %q, want %q at its end", answer, want)
			}
			if _, text := r.await(t, "the recording", whole); text != body {
				t.Errorf("kept: %q", text)
			}
			if got := testutil.ToFloat64(r.handler.recordings.WithLabelValues(resultComplete)); got != 1 {
				t.Errorf("%v complete recordings are counted", got)
			}
			if _, used := r.store.usage(); used != onDisk(int64(len(body))) {
				t.Errorf("%d bytes are used, want %d", used, onDisk(int64(len(body))))
			}
		})
	}
}

// nothing is the API server's end of a session in which nothing is said.
type nothing struct{ io.Reader }

func (nothing) Write(p []byte) (int, error) { return len(p), nil }
func (nothing) Close() error                { return nil }

// The client of package recording and this recorder understand each other.
func TestProxyAndRecorder(t *testing.T) {
	r := start(t, Limits{}, peers{Identity: proxyDevice})
	rec, err := r.connect(t, "sh")
	if err != nil {
		t.Fatal(err)
	}
	session, err := rec.Tap(nothing{strings.NewReader("\x82\x06\x01hello")}, http.Header{"Upgrade": {"websocket"}}, func(err error) { t.Errorf("lost: %v", err) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(session); err != nil {
		t.Fatal(err)
	}
	if err := rec.Finish(); err != nil {
		t.Fatal(err)
	}
	_, text := r.await(t, "the recording", whole)
	var played strings.Builder
	if err := Play(t.Context(), &played, strings.NewReader(text), PlayOptions{}); err != nil || played.String() != "hello" {
		t.Errorf("played %q, %v", played.String(), err)
	}
}

// connect begins a recording as the proxy does.
func (r *rig) connect(t *testing.T, command string) (*recording.Recording, error) {
	t.Helper()
	session := recording.Session{Header: sessionrecording.CastHeader{SrcNode: "laptop", Command: command}}
	return recording.NewRecorders(new(net.Dialer).DialContext).Connect(t.Context(), []netip.AddrPort{r.addr}, session, true)
}

// A session of which nobody knows whether it began leaves a part with its first line,
// which is on the disk before the session can begin.
func TestUnknownSession(t *testing.T) {
	r := start(t, Limits{}, peers{Identity: proxyDevice})
	rec, err := r.connect(t, "sh -c evil")
	if err != nil {
		t.Fatal(err)
	}
	if _, text := r.only(t); !strings.Contains(text, "sh -c evil") || !strings.HasSuffix(text, "\n") {
		t.Errorf("when it begins, there is %q", text)
	}
	why := errors.New("no answer")
	if err := rec.BreakOff(why); !errors.Is(err, why) {
		t.Errorf("it ends with %v", err)
	}
	if _, text := r.await(t, "the recording", part); !strings.Contains(text, "sh -c evil") {
		t.Errorf("kept: %q", text)
	}
	eventually(t, "the incomplete recording is counted", func() bool {
		return testutil.ToFloat64(r.handler.recordings.WithLabelValues(resultIncomplete)) == 1
	})
}

// The longest first line that the proxy sends is one that the recorder takes.
func TestLongestCommand(t *testing.T) {
	r := start(t, Limits{}, peers{Identity: proxyDevice})
	var long *recording.HeaderTooLongError
	if _, err := r.connect(t, strings.Repeat("<", 2*maxHeader)); !errors.As(err, &long) {
		t.Fatal(err)
	}
	fits := 2*maxHeader - (long.Length - maxHeader)
	if _, err := r.connect(t, strings.Repeat("<", fits+1)); !errors.As(err, &long) {
		t.Errorf("one more: %v", err)
	}
	rec, err := r.connect(t, strings.Repeat("<", fits))
	if err != nil {
		t.Fatal(err)
	}
	if err := rec.Finish(); err != nil {
		t.Fatal(err)
	}
	name, _ := r.await(t, "the recording", whole)
	if list, err := List(r.dir); err != nil || len(list[0].Header.Command) != fits {
		t.Errorf("%s is listed as %.200v, %v", name, list, err)
	}
}

// What was acknowledged is in the file.
func TestAcknowledgements(t *testing.T) {
	r := start(t, Limits{}, peers{Identity: proxyDevice})
	body, w := io.Pipe()
	res := r.request(t, true, http.MethodPost, "/v2/record", body)
	acks := json.NewDecoder(bufio.NewReader(res.Body))
	await := func(n int) {
		for {
			var a ack
			if err := acks.Decode(&a); err != nil || a.Error != "" {
				t.Fatalf("waiting for %d bytes: %+v, %v", n, a, err)
			}
			if _, text := r.only(t); int64(len(text)) < a.Ack {
				t.Fatalf("%d bytes are acknowledged, and %d there", a.Ack, len(text))
			}
			if a.Ack == int64(n) {
				return
			}
		}
	}
	await(0)
	_, _ = io.WriteString(w, header)
	await(len(header))
	_, _ = io.WriteString(w, `[1,"o","x"]`+"\n")
	await(len(header) + 12)
	_ = w.Close()
	if rest, err := io.ReadAll(res.Body); err != nil {
		t.Errorf("the answer ends with %q, %v", rest, err)
	}
	r.await(t, "the recording", whole)
}

// only returns the one file, open or not.
func (r *rig) only(t *testing.T) (name, text string) {
	t.Helper()
	for name, text = range r.files(t) {
		return name, text
	}
	return "", ""
}

// Only devices with the right tags may send.
func TestSenders(t *testing.T) {
	for name, tc := range map[string]struct {
		who  peers
		want int
	}{
		"a proxy":               {peers{Identity: proxyDevice}, http.StatusOK},
		"another tagged device": {peers{Identity: identity.Identity{Node: "ci", Tagged: true, Tags: []string{"tag:ci"}}}, http.StatusForbidden},
		"a user's device":       {peers{Identity: identity.Identity{Node: "laptop", User: "alice@example.com", Tags: []string{"tag:k8s"}}}, http.StatusForbidden},
		"a stranger":            {peers{err: identity.ErrUnknownPeer}, http.StatusForbidden},
		"who is not known yet":  {peers{err: errors.New("the tailnet does not answer")}, http.StatusServiceUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, Limits{}, tc.who)
			for _, path := range []string{"/v2/record", "/record"} {
				if res := r.request(t, path == "/v2/record", http.MethodPost, path, strings.NewReader(header)); res.StatusCode != tc.want {
					t.Errorf("%s: %s, want %d", path, res.Status, tc.want)
				}
			}
			if res := r.request(t, true, http.MethodHead, "/v2/record", nil); res.StatusCode != tc.want {
				t.Errorf("HEAD: %s, want %d", res.Status, tc.want)
			}
			if r.settle(t); len(r.files(t)) > 0 != (tc.want == http.StatusOK) {
				t.Errorf("files: %v", r.files(t))
			}
		})
	}
	// Nothing can be read.
	r := start(t, Limits{}, peers{Identity: proxyDevice})
	for _, path := range []string{"/", "/record", "/v2/record", "/operator.tail1234.ts.net/"} {
		if res := r.request(t, false, http.MethodGet, path, nil); res.StatusCode < 400 {
			t.Errorf("GET %s: %s", path, res.Status)
		}
	}
}

// What does not fit is refused in words, and the proxy's code passes them on.
func TestNoRoom(t *testing.T) {
	r := start(t, Limits{Free: 1 << 20}, peers{Identity: proxyDevice})
	r.store.free = func(string) (int64, error) { return 1<<20 - 1, nil }
	_, err := r.connect(t, "sh")
	if err == nil || !strings.Contains(err.Error(), "507") || !strings.Contains(err.Error(), ErrFull.Error()) {
		t.Errorf("a full disk: %v", err)
	}
	if err := r.store.Ready(t.Context()); !errors.Is(err, ErrFull) {
		t.Errorf("ready: %v", err)
	}
	if len(r.files(t)) > 0 {
		t.Error("there is a file")
	}
	if got := testutil.ToFloat64(r.handler.recordings.WithLabelValues(resultRefused)); got != 1 {
		t.Errorf("%v refused recordings are counted", got)
	}
}

func TestTooManyOpen(t *testing.T) {
	r := start(t, Limits{Open: 1}, peers{Identity: proxyDevice})
	body, w := io.Pipe()
	res := r.request(t, true, http.MethodPost, "/v2/record", body)
	if second := r.request(t, true, http.MethodPost, "/v2/record", strings.NewReader(header)); second.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("the second is answered %s", second.Status)
	}
	_ = w.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	r.settle(t)
	if third := r.request(t, true, http.MethodPost, "/v2/record", strings.NewReader(header)); third.StatusCode != http.StatusOK {
		t.Errorf("after its end: %s", third.Status)
	}
}

// One device does not take the place of all others, and who waits for a recorder sees when
// there is no place left.
func TestOneDeviceHasAQuarter(t *testing.T) {
	s := newStore(t, Limits{Open: 8})
	var open []*file
	begin := func(device string) error {
		f, err := s.create(device)
		if err == nil {
			open = append(open, f)
		}
		return err
	}
	for i := range 8 {
		if err := s.Ready(t.Context()); err != nil {
			t.Errorf("ready with %d: %v", i, err)
		}
		device := fmt.Sprint("proxy-", i/2)
		if err := begin(device); err != nil {
			t.Errorf("recording %d: %v", i, err)
		}
		if err := begin(device); i%2 == 1 && !errors.Is(err, ErrTooMany) {
			t.Errorf("a third recording of %s: %v", device, err)
		} else if i%2 == 0 && err != nil {
			t.Errorf("a second recording of %s: %v", device, err)
		} else if i%2 == 0 {
			if err := open[len(open)-1].end(false); err != nil {
				t.Error(err)
			}
			open = open[:len(open)-1]
		}
	}
	if err := s.Ready(t.Context()); !errors.Is(err, ErrTooMany) {
		t.Errorf("ready without a place: %v", err)
	}
	if err := s.appendEvent("proxy-0", []byte("{}\n")); err != nil {
		t.Errorf("an event: %v", err)
	}
	for _, f := range open {
		if err := f.end(false); err != nil {
			t.Error(err)
		}
	}
}

// A recording that does not begin gives its place back; one that has begun may pause.
func TestFirstLineIsAwaited(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		path := map[bool]string{true: "/v2/record", false: "/record"}[http2]
		for _, sent := range []string{"", header[:20]} {
			r := start(t, Limits{}, peers{Identity: proxyDevice})
			r.handler.headerTimeout = 50 * time.Millisecond
			body, w := io.Pipe()
			t.Cleanup(func() { _ = w.Close() })
			go func() { _, _ = io.WriteString(w, sent) }()
			res := r.request(t, http2, http.MethodPost, path, body)
			answer, _ := io.ReadAll(res.Body)
			if !strings.Contains(string(answer), ErrSlow.Error()) || !http2 && res.StatusCode != http.StatusRequestTimeout {
				t.Errorf("%s with %q: %s %q", path, sent, res.Status, answer)
			}
			r.settle(t)
		}
		r := start(t, Limits{}, peers{Identity: proxyDevice})
		r.handler.headerTimeout = patience
		body, w := io.Pipe()
		done := make(chan *http.Response)
		go func() { done <- r.request(t, http2, http.MethodPost, path, body) }()
		_, _ = io.WriteString(w, header)
		eventually(t, "the first line", func() bool { _, used := r.store.usage(); return used > onDisk(0) })
		_, _ = io.WriteString(w, `[1,"o","x"]`+"\n")
		_ = w.Close()
		res := <-done
		if answer, err := io.ReadAll(res.Body); err != nil || res.StatusCode != http.StatusOK || strings.Contains(string(answer), "error") {
			t.Errorf("%s: %s %q, %v", path, res.Status, answer, err)
		}
		r.await(t, "the recording", whole)
	}
}

// deadlines notes the last deadline for reading.
type deadlines struct {
	*httptest.ResponseRecorder
	last time.Time
	set  int
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.last = t
	d.set++
	return nil
}

// What has begun has no deadline any more.
func TestDeadlinesAreLifted(t *testing.T) {
	for path, text := range map[string]string{"/v2/record": header, "/record": header + `[1,"o","x"]`, "/v2/event": "{}"} {
		r := start(t, Limits{}, peers{Identity: proxyDevice})
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		r.handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, strings.NewReader(text)))
		if w.Code != http.StatusOK || w.set != 2 || !w.last.IsZero() {
			t.Errorf("%s: %d, the last of %d deadlines is %s", path, w.Code, w.set, w.last)
		}
	}
}

// Events that do not come hold up nobody for long, and other devices not at all.
func TestSlowEvents(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		r := start(t, Limits{}, peers{Identity: proxyDevice})
		r.handler.eventTimeout = 50 * time.Millisecond
		body, w := io.Pipe()
		t.Cleanup(func() { _ = w.Close() })
		if res := r.request(t, http2, http.MethodPost, "/v2/event", body); res.StatusCode != http.StatusRequestTimeout {
			t.Errorf("an event that does not come: %s", res.Status)
		}
		for range maxEventsPerDevice {
			release, err := r.handler.events.Acquire(t.Context(), proxyDevice.Node)
			if err != nil {
				t.Fatal(err)
			}
			defer release()
		}
		if res := r.request(t, http2, http.MethodPost, "/v2/event", strings.NewReader("{}")); res.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("one more than may be under way: %s", res.Status)
		}
		release, err := r.handler.events.Acquire(t.Context(), "another")
		if err != nil {
			t.Fatal(err)
		}
		release()
	}
}

// A device that may send nothing cannot hold a connection by what it announces and does not send.
func TestRefusedSenderDoesNotStay(t *testing.T) {
	for _, path := range []string{"/record", "/v2/record", "/v2/event", "/elsewhere"} {
		r := start(t, Limits{}, peers{Identity: identity.Identity{Node: "laptop.tail1234.ts.net"}})
		r.handler.lastUpload = 50 * time.Millisecond
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", r.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: recorder\r\nContent-Length: 1000\r\n\r\n", path); err != nil {
			t.Fatal(err)
		}
		if answer, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 403 ") {
			t.Errorf("%s: %q, %v", path, answer, err)
		}
	}
}

// A device has a bounded number of connections.
func TestConnectionsPerPeer(t *testing.T) {
	metrics := prometheus.NewRegistry()
	server := NewServer(http.NotFoundHandler(), slog.New(slog.DiscardHandler), metrics)
	server.ReadHeaderTimeout = patience // or those that send nothing would go
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	for range maxConnectionsPerPeer + 1 {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
	}
	eventually(t, "one more connection than a peer may have is turned away", func() bool {
		err := testutil.GatherAndCompare(metrics, strings.NewReader(`
# HELP tailhelm_recorder_connections_turned_away_total Connections closed at once because their peer had too many.
# TYPE tailhelm_recorder_connections_turned_away_total counter
tailhelm_recorder_connections_turned_away_total 1
`), "tailhelm_recorder_connections_turned_away_total")
		return err == nil
	})
}

// A recording that cannot go on says why, and what there is of it is kept as a part.
func TestRecordingsThatEnd(t *testing.T) {
	long := header + strings.Repeat(`[1,"o","x"]`+"\n", 1000)
	for name, tc := range map[string]struct {
		body string
		want error
		code int
	}{
		"too large":         {long, ErrTooLarge, http.StatusRequestEntityTooLarge},
		"no header":         {"hello\n", ErrMalformed, http.StatusBadRequest},
		"version 1":         {`{"version":1}` + "\n", ErrMalformed, http.StatusBadRequest},
		"a cut header":      {header[:50], ErrMalformed, http.StatusBadRequest},
		"an endless header": {strings.Repeat(" ", maxHeader+1), ErrMalformed, http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{"/v2/record", "/record"} {
				r := start(t, Limits{Recording: 100_000}, peers{Identity: proxyDevice})
				if name == "too large" {
					r.store.limits.Recording = 1000
				}
				res := r.request(t, path == "/v2/record", http.MethodPost, path, strings.NewReader(tc.body))
				answer, _ := io.ReadAll(res.Body)
				if !strings.Contains(string(answer), tc.want.Error()) || path == "/record" && res.StatusCode != tc.code {
					t.Errorf("%s: %s %q, want %q", path, res.Status, answer, tc.want)
				}
				r.settle(t)
				for name := range r.files(t) {
					if !strings.HasSuffix(name, part) {
						t.Errorf("%s: kept as %s", path, name)
					}
				}
			}
		})
	}
}

// Events are kept a line each, and what is none is refused.
func TestEvents(t *testing.T) {
	r := start(t, Limits{}, peers{Identity: proxyDevice})
	for body, want := range map[string]int{
		"{\"type\":\"a\",\n \"id\":\"\"}": http.StatusOK, `{"type":"b"}`: http.StatusOK, "": http.StatusBadRequest, "x": http.StatusBadRequest, "[]": http.StatusBadRequest,
		"{}{}": http.StatusBadRequest, `{"x":"` + strings.Repeat("x", maxEvent) + `"}`: http.StatusRequestEntityTooLarge,
	} {
		if res := r.request(t, false, http.MethodPost, "/v2/event", strings.NewReader(body)); res.StatusCode != want {
			t.Errorf("%.30q: %s, want %d", body, res.Status, want)
		}
	}
	files, err := r.store.files()
	if err != nil || len(files) != 1 || !strings.HasSuffix(files[0].path, events) {
		t.Fatalf("files %+v, %v", files, err)
	}
	text, err := os.ReadFile(files[0].path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	slices.Sort(lines)
	if want := []string{"", `{"type":"a","id":""}`, `{"type":"b"}`}; !slices.Equal(lines, want) {
		t.Errorf("kept: %q", lines)
	}
	if _, used := r.store.usage(); used != onDisk(int64(len(text))) {
		t.Errorf("%d bytes are used, want %d", used, onDisk(int64(len(text))))
	}
	if recordings := r.files(t); len(recordings) > 0 {
		t.Errorf("listed as recordings: %v", recordings)
	}
	r.store.free = func(string) (int64, error) { return 0, nil }
	if res := r.request(t, false, http.MethodPost, "/v2/event", strings.NewReader("{}")); res.StatusCode != http.StatusInsufficientStorage {
		t.Errorf("a full disk: %s", res.Status)
	}
}

// A sender that breaks off leaves a part; one that sends nothing leaves nothing.
func TestBrokenOff(t *testing.T) {
	for _, sent := range []string{header, ""} {
		r := start(t, Limits{}, peers{Identity: proxyDevice})
		body, w := io.Pipe()
		res := r.request(t, true, http.MethodPost, "/v2/record", body)
		_, _ = io.WriteString(w, sent)
		eventually(t, "what was sent", func() bool { _, used := r.store.usage(); return used == onDisk(int64(len(sent))) })
		_ = w.CloseWithError(errors.New("broken off"))
		_ = res.Body.Close()
		if r.settle(t); sent == "" {
			if files := r.files(t); len(files) > 0 {
				t.Errorf("nothing is kept as %v", files)
			}
			if _, used := r.store.usage(); used != 0 {
				t.Errorf("nothing takes %d bytes", used)
			}
			continue
		}
		if _, text := r.await(t, "the recording", part); text != sent {
			t.Errorf("kept: %q", text)
		}
	}
}

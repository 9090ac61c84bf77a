// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"tailscale.com/sessionrecording"

	"github.com/tailhelm/tailhelm/internal/identity"
	"github.com/tailhelm/tailhelm/internal/recording"
)

const (
	podPath    = "/api/v1/namespaces/default/pods/p"
	deadAddr   = "127.0.0.1:1" // where nothing listens
	recordings = "tailhelm_apiproxy_recordings_total"
)

// recorder stands in for a recorder on the tailnet.
type recorder struct {
	*httptest.Server
	addr netip.AddrPort
	// hold and confirm, if not nil, are closed to let recordings begin and end.
	hold, confirm chan struct{}

	mu     sync.Mutex
	cast   bytes.Buffer
	whole  bool
	events []sessionrecording.Event
}

func newRecorder(t *testing.T, knowsEvents bool) *recorder {
	t.Helper()
	s := &recorder{}
	mux := http.NewServeMux()
	if knowsEvents {
		mux.HandleFunc("POST /v2/event", func(_ http.ResponseWriter, r *http.Request) {
			var e sessionrecording.Event
			if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
				panic(err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.events = append(s.events, e)
		})
	}
	mux.HandleFunc("HEAD /v2/record", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /v2/record", s.record)
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

// record acknowledges what it gets, at once. Calls that follow each other share a cast.
func (s *recorder) record(w http.ResponseWriter, r *http.Request) {
	flush := http.NewResponseController(w).Flush
	_ = flush()
	if s.hold != nil {
		<-s.hold
	}
	b := make([]byte, 4096)
	for total := 0; ; _ = flush() {
		n, err := r.Body.Read(b)
		s.mu.Lock()
		s.cast.Write(b[:n])
		s.whole = errors.Is(err, io.EOF)
		s.mu.Unlock()
		total += n
		if err != nil {
			if s.confirm != nil {
				<-s.confirm
			}
			return
		}
		_, _ = fmt.Fprintf(w, `{"ack":%d}`, total)
	}
}

// wasWhole is whether the last recording has ended as it should.
func (s *recorder) wasWhole() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.whole
}

// eventCount is how many events the recorder has.
func (s *recorder) eventCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.events)
}

func (s *recorder) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cast.String()
}

// grant lets alice's sessions be recorded.
func (r *rig) grant(enforced bool, recorders ...netip.AddrPort) {
	r.peers.change(func(ids map[netip.Addr]identity.Identity, _ map[netip.Addr]error) {
		id := alice
		id.MustRecord, id.Recorders, id.UserID = enforced, recorders, 7
		ids[alice.Addr] = id
	})
}

// hello is a message of a container, hello in a session of WebSocket.
const hello = "\x82\x06\x01hello"

// speak answers an upgrade as an API server does whose container says hello, and reads
// until the client ends.
func speak(w http.ResponseWriter, r *http.Request) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_, _ = io.WriteString(w, "{}")
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Protocol: %s\r\n\r\n%s",
		r.Header.Get("Upgrade"), r.Header.Get("Sec-Websocket-Protocol"), hello)
	_, _ = io.Copy(io.Discard, buffered)
}

// The decision whether a request is forwarded, and whether it is recorded.
func TestRecordingDecisions(t *testing.T) {
	for _, tc := range []struct {
		recorders, enforced, reachable bool
		// status of a session, and what becomes of its recording
		status int
		result string
		label  string // of the refusal
		says   string
	}{
		{false, false, false, 101, "", "", ""},
		{false, true, false, 403, "", reasonNoRecorder, "there is no recorder with the tag"},
		{true, false, true, 101, recordedWhole, "", ""},
		{true, false, false, 101, recordedNot, "", ""},
		{true, true, true, 101, recordedWhole, "", ""},
		{true, true, false, 503, "", reasonRecorder, "no recorder takes it (tried " + deadAddr + ")"},
	} {
		for _, mode := range []Mode{ModeAuth, ModeNoAuth} {
			t.Run(fmt.Sprintf("recorders %v, enforced %v, reachable %v, %s", tc.recorders, tc.enforced, tc.reachable, mode), func(t *testing.T) {
				api, s := newAPIServer(t, speak), newRecorder(t, false)
				r := start(t, api, options{mode: mode})
				var recorders []netip.AddrPort
				if tc.recorders {
					recorders = []netip.AddrPort{netip.MustParseAddrPort(deadAddr)}
				}
				if tc.reachable {
					recorders = append(recorders, s.addr)
				}
				r.grant(tc.enforced, recorders...)
				// Other requests are never recorded, and never refused for it.
				for _, path := range []string{podPath, podPath + "/log"} {
					if res, body := r.get(t, alice.Addr, path, nil); res.StatusCode != http.StatusOK {
						t.Errorf("%s: %d %s", path, res.StatusCode, body)
					}
				}
				before := len(api.all())
				session, status := r.upgrade(t, alice.Addr, http.MethodGet, "websocket", "Sec-WebSocket-Protocol: v5.channel.k8s.io")
				if status != tc.status {
					t.Fatalf("status %d, want %d", status, tc.status)
				}
				if tc.status != http.StatusSwitchingProtocols {
					checkNotForwarded(t, r, before, tc.label, tc.says)
					return
				}
				got := make([]byte, len(hello))
				if _, err := io.ReadFull(session.read, got); err != nil || string(got) != hello {
					t.Errorf("the client gets %q, %v", got, err)
				}
				_ = session.Close()
				line := r.logs.lines(t, "request", 3)[2]
				if got, _ := line["recording"].(string); got != tc.result {
					t.Errorf("logged %v, want the recording %q", line, tc.result)
				}
				if tc.result != "" && metric(t, r.metrics, recordings, "result", tc.result) != 1 {
					t.Errorf("no recording %q is counted", tc.result)
				}
				if tc.result == recordedWhole {
					checkCast(t, s.text())
				} else if s.text() != "" {
					t.Errorf("recorded: %q", s.text())
				}
			})
		}
	}
}

// checkNotForwarded checks that a session was refused with a sentence, and that the API
// server never heard of it.
func checkNotForwarded(t *testing.T, r *rig, before int, label, says string) {
	t.Helper()
	if n := len(r.api.all()) - before; n > 0 {
		t.Errorf("%d requests reached the API server", n)
	}
	line := r.logs.lines(t, "request", 3)[2]
	if line["refused"] != label {
		t.Errorf("logged %v, want the refusal %q", line, label)
	}
	req := r.request(t, http.MethodGet, podPath+"/exec", nil, http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}})
	res, body := r.do(t, alice.Addr, false, req)
	status := statusOf(t, res, body)
	if status.Status != metav1.StatusFailure || !strings.Contains(status.Message, says) {
		t.Errorf("the client is told %+v, want %q", status, says)
	}
}

// checkCast checks the recording of a session with speak.
func checkCast(t *testing.T, text string) {
	t.Helper()
	head, events, _ := strings.Cut(text, "\n")
	var h sessionrecording.CastHeader
	if err := json.Unmarshal([]byte(head), &h); err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	if h.SrcNode != alice.Node || h.SrcNodeID != alice.NodeID || h.SrcNodeUser != alice.User || h.SrcNodeUserID != 7 || h.SrcNodeTags != nil ||
		h.Command != "sh" || *h.Kubernetes != (sessionrecording.Kubernetes{PodName: "p", Namespace: "default", SessionType: "exec"}) {
		t.Errorf("header %s", head)
	}
	if !strings.HasSuffix(events, `,"o","hello"]`+"\n") || strings.Count(events, "\n") != 1 {
		t.Errorf("events %q", events)
	}
}

// However a session is spelled, it is recorded or does not reach the API server.
func TestNoWayAroundTheRecorder(t *testing.T) {
	for _, enforced := range []bool{true, false} {
		t.Run(fmt.Sprintf("enforced: %v", enforced), func(t *testing.T) {
			api := newAPIServer(t, speak)
			r := start(t, api, options{})
			r.grant(enforced, newRecorder(t, false).addr)
			upgrade := func(values ...string) http.Header {
				return http.Header{"Connection": {"Upgrade"}, "Upgrade": {values[0]}, "Sec-Websocket-Protocol": values[1:]}
			}
			for name, tc := range map[string]struct {
				method, path string
				header       http.Header
				status       int
			}{
				"base64":             {http.MethodGet, "/exec", upgrade("websocket", "base64.channel.k8s.io"), 400},
				"base64, slash":      {http.MethodGet, "/exec/", upgrade("websocket", "v4.base64.channel.k8s.io"), 400},
				"base64, escaped":    {http.MethodGet, "%2Fexec", upgrade("websocket", "base64.channel.k8s.io"), 400},
				"base64, attach":     {http.MethodPost, "/att%61ch", upgrade("websocket", "base64.channel.k8s.io"), 400},
				"an odd protocol":    {http.MethodGet, "/exec", upgrade("SPDY/3.1, x"), 400},
				"something behind":   {http.MethodGet, "/exec/x", upgrade("h2c"), 400},
				"an odd method":      {http.MethodPut, "/exec", upgrade("h2c"), 400},
				"no recorder to ask": {http.MethodGet, "/portforward", upgrade("h2c"), 101},
			} {
				before := len(api.all())
				req := r.request(t, tc.method, podPath+tc.path, nil, tc.header)
				res, err := r.client(t, alice.Addr, false).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
				if reached := len(api.all()) > before; res.StatusCode != tc.status || reached != (tc.status == 101) {
					t.Errorf("%s: status %d, reached the API server: %v", name, res.StatusCode, reached)
				}
			}
		})
	}
}

// What leads to sessions without a recorder is refused to those who must be recorded.
func TestEnforceRecorder(t *testing.T) {
	r := start(t, newAPIServer(t, nil), options{})
	r.grant(true, newRecorder(t, false).addr)
	for path, want := range map[string]int{
		podPath + "/exec?command=sh": http.StatusBadRequest, podPath + "/attach": http.StatusBadRequest, podPath + "/exec/": http.StatusBadRequest,
		"/api/v1/nodes/n/proxy/exec/a/b/c": http.StatusForbidden, podPath: http.StatusOK, podPath + "/log": http.StatusOK,
	} {
		if res, body := r.get(t, alice.Addr, path, nil); res.StatusCode != want {
			t.Errorf("%s: %d %s", path, res.StatusCode, body)
		}
		if res, body := r.get(t, bob.Addr, path, nil); res.StatusCode != http.StatusOK {
			t.Errorf("somebody else, %s: %d %s", path, res.StatusCode, body)
		}
	}
}

// A recorder that is lost ends the session of who must be recorded, with a message, and
// nobody else's.
func TestRecorderLost(t *testing.T) {
	for _, enforced := range []bool{true, false} {
		t.Run(fmt.Sprintf("enforced: %v", enforced), func(t *testing.T) {
			ended := make(chan struct{})
			api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				defer close(ended)
				speak(w, r)
			})
			s := newRecorder(t, false)
			r := start(t, api, options{})
			r.grant(enforced, s.addr)
			session := r.stream(t, alice.Addr, http.MethodGet, "websocket", "Sec-WebSocket-Protocol: v5.channel.k8s.io")
			if _, err := io.ReadFull(session.read, make([]byte, len(hello))); err != nil {
				t.Fatal(err)
			}
			s.CloseClientConnections()
			r.logs.lines(t, "the recording of a session is lost", 1)
			if enforced {
				rest, err := io.ReadAll(session.read)
				if err != nil || !bytes.Contains(rest, []byte("The recording of this session was lost")) {
					t.Errorf("the session ends with %q, %v", rest, err)
				}
				receive(t, ended, "the end at the API server")
			} else if _, err := io.WriteString(session, "\x82\x81abcda"); err != nil {
				t.Errorf("the session does not go on: %v", err)
			}
			_ = session.Close()
			receive(t, ended, "the end at the API server")
			if line := r.logs.lines(t, "request", 1)[0]; line["recording"] != recordedPartly || line["recordingError"] == "" || line["recorder"] != s.addr.String() {
				t.Errorf("logged as %v", line)
			}
			if metric(t, r.metrics, recordings, "result", recordedPartly) != 1 {
				t.Error("it is not counted")
			}
		})
	}
}

// The decision whether a request of a caller with events is forwarded.
func TestEventDecisions(t *testing.T) {
	for _, tc := range []struct {
		recorders, enforced, reachable, known bool
		status                                int
		label                                 string
		sent, lost                            float64
	}{
		{false, false, false, false, 200, "", 0, 0},
		{false, true, false, false, 403, reasonNoRecorder, 0, 0},
		{true, false, true, true, 200, "", 1, 0},
		{true, false, true, false, 200, "", 0, 1},
		{true, false, false, false, 200, "", 0, 1},
		{true, true, true, true, 200, "", 1, 0},
		{true, true, true, false, 503, reasonRecorder, 0, 1},
		{true, true, false, false, 503, reasonRecorder, 0, 1},
	} {
		t.Run(fmt.Sprintf("recorders %v, enforced %v, reachable %v, events known %v", tc.recorders, tc.enforced, tc.reachable, tc.known), func(t *testing.T) {
			s := newRecorder(t, tc.known)
			r := start(t, newAPIServer(t, nil), options{})
			var recorders []netip.AddrPort
			if tc.recorders {
				recorders = []netip.AddrPort{netip.MustParseAddrPort(deadAddr)}
			}
			if tc.reachable {
				recorders = append(recorders, s.addr)
			}
			r.grant(tc.enforced, recorders...)
			r.peers.change(func(ids map[netip.Addr]identity.Identity, _ map[netip.Addr]error) {
				id := ids[alice.Addr]
				id.Events = true
				ids[alice.Addr] = id
			})
			req := r.request(t, http.MethodPost, "/api/v1/namespaces/ns/secrets?dryRun=All", strings.NewReader(`{"data":"secret"}`), http.Header{"User-Agent": {"kubectl"}})
			res, body := r.do(t, alice.Addr, true, req)
			if res.StatusCode != tc.status {
				t.Errorf("status %d, want %d: %s", res.StatusCode, tc.status, body)
			}
			if reached := len(r.api.all()) == 1; reached != (tc.status == 200) {
				t.Errorf("it reached the API server: %v", reached)
			}
			if line := r.logs.lines(t, "request", 1)[0]; tc.label != "" && line["refused"] != tc.label {
				t.Errorf("logged %v, want %s", line, tc.label)
			}
			const events = "tailhelm_apiproxy_events_total"
			eventually(t, "the event is counted", func() bool {
				return metric(t, r.metrics, events, "result", eventSent) == tc.sent && metric(t, r.metrics, events, "result", eventLost) == tc.lost
			})
			if s.eventCount() != int(tc.sent) {
				t.Errorf("the recorder has %d events", s.eventCount())
			}
			if tc.sent == 1 {
				checkEvent(t, s.events[0])
			}
			if tc.lost > 0 {
				line := r.logs.lines(t, "events of requests are lost", 1)[0]
				if line["level"] != "WARN" || line["user"] != alice.User || line["count"] != 1.0 || line["error"] == nil {
					t.Errorf("logged as %v", line)
				}
			}
			// Whoever asks for no events costs none.
			if res, _ := r.get(t, bob.Addr, podPath, nil); res.StatusCode != http.StatusOK || s.eventCount() != int(tc.sent) {
				t.Errorf("somebody else: %d, %d events", res.StatusCode, s.eventCount())
			}
		})
	}
}

// Who sends more than recorders take at a time is told so, and clients try again by
// themselves; it says nothing about the recorders.
func TestTooManyEvents(t *testing.T) {
	recorders := []netip.AddrPort{netip.MustParseAddrPort(deadAddr)}
	f := refuseUnreported(recording.ErrEventsBehind, recorders)
	if f.code != http.StatusTooManyRequests || f.label != reasonTooMany || f.retryAfter == 0 || strings.Contains(f.message, deadAddr) {
		t.Errorf("too many: %+v", f)
	}
	if f := refuseUnreported(errors.New("no route"), recorders); f.code != http.StatusServiceUnavailable || f.label != reasonRecorder || !strings.Contains(f.message, deadAddr) {
		t.Errorf("away: %+v", f)
	}
}

// checkEvent checks the event of a Secret that alice makes.
func checkEvent(t *testing.T, e sessionrecording.Event) {
	t.Helper()
	if e.Type != sessionrecording.KubernetesAPIEventType || e.Timestamp == 0 || e.UserAgent != "kubectl" {
		t.Errorf("event %+v", e)
	}
	if e.Request.Method != http.MethodPost || e.Request.Path != "/api/v1/namespaces/ns/secrets?dryRun=All" || e.Request.QueryParameters.Get("dryRun") != "All" || e.Request.Body != nil {
		t.Errorf("request %+v", e.Request)
	}
	if k := e.Kubernetes; k.Verb != "create" || k.Resource != "secrets" || k.Namespace != "ns" || !k.IsResourceRequest {
		t.Errorf("Kubernetes' view %+v", k)
	}
	if e.Source.Node != alice.Node || e.Source.NodeUser != alice.User || e.Source.NodeUserID != 7 || e.Source.NodeID != alice.NodeID || e.Destination.Node != deviceName {
		t.Errorf("source %+v, destination %+v", e.Source, e.Destination)
	}
}

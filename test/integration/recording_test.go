// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"tailscale.com/sessionrecording"
	"tailscale.com/tailcfg"

	"github.com/tailhelm/tailhelm/test/kubernetes"
	"github.com/tailhelm/tailhelm/test/tailhelm"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// recorderTag tags recorders.
const recorderTag = "tag:recorder"

// testRecorder is a device that records what it is sent, in memory.
type testRecorder struct {
	*tailnet.Device
	server *http.Server
	old    bool // speaks version 1 of the protocol only

	mu      sync.Mutex
	casts   []*bytes.Buffer
	open    int
	changed chan struct{}
}

// newRecorder makes a recorder. It leaves the tailnet when the test ends.
func newRecorder(t *testing.T, old bool) *testRecorder {
	t.Helper()
	d := must[*tailnet.Device](t)(shared.tailnet.Device(within(t, patience), unique("recorder"), tailnet.Identity{Tags: []string{recorderTag}}))
	r := &testRecorder{Device: d, old: old, changed: make(chan struct{})}
	l := must[net.Listener](t)(d.Server().Listen("tcp", ":80"))
	mux := http.NewServeMux()
	if old {
		mux.HandleFunc("POST /record", r.record)
	} else {
		mux.HandleFunc("HEAD /v2/record", func(http.ResponseWriter, *http.Request) {})
		mux.HandleFunc("POST /v2/record", r.record)
	}
	r.server = &http.Server{Handler: mux, ReadHeaderTimeout: patience, Protocols: new(http.Protocols)}
	r.server.Protocols.SetHTTP1(true)
	r.server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = r.server.Serve(l) }()
	t.Cleanup(func() {
		r.die()
		_ = shared.tailnet.Remove(d.Name())
		noError(t, d.Close())
	})
	shared.proxy.catchUp(t)
	return r
}

// die ends the recorder with everything that it is recording.
func (r *testRecorder) die() { _ = r.server.Close() }

func (r *testRecorder) record(w http.ResponseWriter, req *http.Request) {
	cast := &bytes.Buffer{}
	r.update(func() { r.casts, r.open = append(r.casts, cast), r.open+1 })
	defer r.update(func() { r.open-- })
	response := http.NewResponseController(w)
	if !r.old {
		_ = response.Flush()
	}
	b := make([]byte, 32<<10)
	for total := 0; ; {
		n, err := req.Body.Read(b)
		r.update(func() { cast.Write(b[:n]) })
		if total += n; !r.old {
			_, _ = fmt.Fprintf(w, "{\"ack\":%d}\n", total)
			_ = response.Flush()
		}
		if err != nil {
			return
		}
	}
}

// update changes the recorder and tells those who wait.
func (r *testRecorder) update(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	close(r.changed)
	r.changed = make(chan struct{})
}

// await waits until a condition holds of the recordings, none of which is open.
func (r *testRecorder) await(t *testing.T, what string, condition func(casts []string) bool) []string {
	t.Helper()
	ctx := within(t, patience)
	for {
		r.mu.Lock()
		open, changed := r.open, r.changed
		var casts []string
		for _, c := range r.casts {
			if c.Len() > 0 {
				casts = append(casts, c.String())
			}
		}
		r.mu.Unlock()
		if open == 0 && condition(casts) {
			return casts
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %d recordings, %d open: %.2000q", what, len(casts), open, casts)
		}
	}
}

// addr is where the recorder listens.
func (r *testRecorder) addr() netip.AddrPort { return netip.AddrPortFrom(r.Addrs()[0], 80) }

// recordGrant has the sessions of src recorded.
func recordGrant(t *testing.T, src string, enforced bool, recorders ...netip.AddrPort) {
	t.Helper()
	value := must[[]byte](t)(json.Marshal(map[string]any{"recorder": []string{recorderTag}, "recorderAddrs": recorders, "enforceRecorder": enforced}))
	grant(t, shared.tailnet, tailnet.Grant{Src: []string{src}, Dst: []string{proxyTag}, App: tailcfg.PeerCapMap{
		tailcfg.PeerCapabilityKubernetes: {tailcfg.RawMessage(value)},
	}})
}

// recorded is a user whose sessions are recorded, with a pod.
func recorded(t *testing.T, enforced bool, recorders ...netip.AddrPort) (c *caller, namespace, pod string) {
	t.Helper()
	c, namespace, pod = owner(t, shared.proxy)
	recordGrant(t, c.user, enforced, recorders...)
	shared.proxy.catchUp(t)
	return c, namespace, pod
}

// cast is a recording, read.
type cast struct {
	sessionrecording.CastHeader
	output  string
	resizes []string
	remarks []string
}

func readCast(t *testing.T, text string) cast {
	t.Helper()
	var c cast
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	noError(t, json.Unmarshal([]byte(lines[0]), &c.CastHeader))
	for _, line := range lines[1:] {
		var at float64
		var kind, said string
		if err := json.Unmarshal([]byte(line), &[]any{&at, &kind, &said}); err != nil || at < 0 {
			t.Fatalf("%.200q: %v", line, err)
		}
		switch kind {
		case "o":
			c.output += said
		case "r":
			c.resizes = append(c.resizes, said)
		case "m":
			c.remarks = append(c.remarks, said)
		default:
			t.Fatalf("an event %q", line)
		}
	}
	return c
}

// TestRecording records what kubectl does, over both protocols: the sessions are what
// they are without a recorder, and the recording holds what was said.
func TestRecording(t *testing.T) {
	t.Parallel()
	for _, p := range protocols {
		for name, tc := range map[string]struct {
			test        func(t *testing.T, c *caller, p protocol, ns, pod string)
			old         bool
			session     string
			command     string
			says        string
			cols, lines int
			resizes     []string
		}{
			"exec":     {test: testExec, session: "exec", command: "sh -c cat; echo to stderr >&2; exit 42", says: "to stdout\n"},
			"old":      {test: testExec, old: true, session: "exec", command: "sh -c cat; echo to stderr >&2; exit 42", says: "to stderr\n"},
			"terminal": {test: testTerminal, session: "exec", command: "sh", says: "33 77\r\n", cols: 80, lines: 24, resizes: []string{"77x33", "99x44"}},
			"attach":   {test: testAttach, session: "attach", says: "you said hello\n"},
			"debug":    {test: testDebug, session: "attach", says: "a question\n"},
			"bulk":     {test: testRecordedBulk, session: "exec", command: "cat"},
		} {
			t.Run(p.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				r := newRecorder(t, tc.old)
				c, ns, pod := recorded(t, true, r.addr())
				tc.test(t, c, p, ns, pod)
				casts := r.await(t, "the recording", func(casts []string) bool { return len(casts) == 1 })
				got := readCast(t, casts[0])
				if !strings.Contains(got.output, tc.says) || name == "bulk" && len(got.output) < recordedBulk {
					t.Errorf("recorded %d bytes: %.500q", len(got.output), got.output)
				}
				if got.Width != tc.cols || got.Height != tc.lines || !slices.Equal(got.resizes, tc.resizes) {
					t.Errorf("a terminal of %dx%d, and then %q", got.Width, got.Height, got.resizes)
				}
				if len(got.remarks) > 0 {
					t.Errorf("a session with the remarks %q", got.remarks)
				}
				k := sessionrecording.Kubernetes{PodName: pod, Namespace: ns, Container: got.Kubernetes.Container, SessionType: tc.session}
				if got.Version != 2 || got.SrcNode != c.FQDN() || got.SrcNodeUser != c.user || got.SrcNodeUserID == 0 || got.Command != tc.command || *got.Kubernetes != k {
					t.Errorf("header %+v", got.CastHeader)
				}
				e := shared.proxy.waitRequest(t, func(e logEntry) bool { return e.Kind == "stream" && e.Namespace == ns })
				if e.Method != p.method || e.Recording != "complete" || e.Recorder != r.addr().String() {
					t.Errorf("the session was %+v", e)
				}
			})
		}
	}
}

// recordedBulk is how much passes twice: to kubectl and, larger as text, to the recorder.
const recordedBulk = 2 << 20

func testRecordedBulk(t *testing.T, c *caller, p protocol, ns, pod string) {
	testBulkOf(t, recordedBulk, c, p, ns, pod)
}

// deadRecorder is the address of a recorder that has left the tailnet.
func deadRecorder(t *testing.T) netip.AddrPort {
	t.Helper()
	d := must[*tailnet.Device](t)(shared.tailnet.Device(within(t, patience), unique("recorder"), tailnet.Identity{Tags: []string{recorderTag}}))
	noError(t, d.Close())
	noError(t, shared.tailnet.Remove(d.Name()))
	return netip.AddrPortFrom(d.Addrs()[0], 80)
}

// TestEnforcedRecording: without a recorder, a session that must be recorded reaches
// neither the API server nor a node, however it is spelled; and kubectl says why.
func TestEnforcedRecording(t *testing.T) {
	t.Parallel()
	dead := deadRecorder(t)
	c, ns, pod := recorded(t, true, dead)
	pwned := func(n int) string { return fmt.Sprintf("%s-pwned-%d", pod, n) }
	n := 0
	for _, p := range protocols {
		n++
		cmd := c.command(within(t, patience), "exec", "-n", ns, pod, "--", "touch", pwned(n))
		cmd.Env = append(cmd.Env, p.env...)
		out, err := cmd.CombinedOutput()
		if want := "tried " + dead.String(); err == nil || !strings.Contains(string(out), "enforceRecorder") || !strings.Contains(string(out), want) {
			t.Errorf("%s: %v, want %q\n%s", p.name, err, want, out)
		}
	}
	base := fmt.Sprintf("/api/v1/namespaces/%s/pods/%s", ns, pod)
	for _, tc := range []struct{ method, path, protocol string }{
		{"GET", base + "/exec", "websocket"},
		{"POST", base + "/exec", "SPDY/3.1"},
		{"GET", base + "/exec/", "websocket"},
		{"POST", base + "/exec/", "SPDY/3.1"},
		{"GET", base + "%2Fexec", "websocket"},
		{"POST", base + "%2Fexec", "SPDY/3.1"},
		{"GET", base + "/%65xec", "websocket"},
		{"GET", base + "//exec", "websocket"},
		{"GET", "/" + base + "/exec", "websocket"},
		{"GET", base + "/exec/x", "WebSocket"},
		{"GET", base + "/exec", "SPDY/3.1"},
		{"PUT", base + "/exec", "websocket"},
		{"GET", base + "/exec", "spdy/3.1, websocket"},
		{"GET", fmt.Sprintf("/api/v1/nodes/node/proxy/exec/%s/%s/main", ns, pod), "websocket"},
	} {
		n++
		query := "?container=main&stdout=true&command=touch&command=" + pwned(n)
		if status := c.upgrade(tc.method, tc.path+query, tc.protocol); status == http.StatusSwitchingProtocols || status < 400 {
			t.Errorf("%s %s by %s: status %d", tc.method, tc.path, tc.protocol, status)
		}
	}
	// A session of somebody who need not be recorded proves that a command would have run.
	other := newUser(t, shared.proxy)
	bind(t, ns, "cluster-admin", user(other.user))
	other.mustKubectl("exec", "-n", ns, pod, "--", "touch", pwned(0))
	if made := findFiles(t, pod+"-pwned-"); len(made) != 1 || !strings.HasSuffix(made[0], pwned(0)) {
		t.Errorf("commands ran: %q", made)
	}
	events, err := shared.cluster.AuditEvents(kubernetes.AuditFilter{ImpersonatedUser: c.user, Resource: "pods", Subresource: "exec"})
	noError(t, err)
	if len(events) > 0 {
		t.Errorf("%d sessions reached the API server: %s", len(events), events[0].RequestURI)
	}
}

// findFiles finds files that begin with a name, below the folder of the cluster.
func findFiles(t *testing.T, prefix string) (found []string) {
	t.Helper()
	noError(t, filepath.WalkDir(filepath.Join(shared.cluster.Dir(), "pods"), func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(filepath.Base(path), prefix) {
			found = append(found, path)
		}
		return nil // folders of pods come and go
	}))
	return found
}

// upgrade asks for an upgrade byte by byte, and returns the status of the answer.
func (c *caller) upgrade(method, uri, protocol string) int {
	c.t.Helper()
	conn := must[net.Conn](c.t)(c.Dial(within(c.t, patience), "tcp", c.proxy.host+":443"))
	defer func() { _ = conn.Close() }()
	secure := tls.Client(conn, &tls.Config{RootCAs: c.proxy.tailnet.Roots(), ServerName: c.proxy.host})
	_, err := fmt.Fprintf(secure, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Version: 13\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n", method, uri, c.proxy.host, protocol)
	noError(c.t, err)
	res := must[*http.Response](c.t)(http.ReadResponse(bufio.NewReader(secure), nil))
	_ = res.Body.Close()
	return res.StatusCode
}

// TestLeaving: who leaves when a session is being asked for leaves a recording of what
// reached the API server.
func TestLeaving(t *testing.T) {
	t.Parallel()
	r := newRecorder(t, false)
	c, ns, pod := recorded(t, true, r.addr())
	const sessions = 20
	for n := range sessions {
		conn := must[net.Conn](t)(c.Dial(within(t, patience), "tcp", c.proxy.host+":443"))
		secure := tls.Client(conn, &tls.Config{RootCAs: c.proxy.tailnet.Roots(), ServerName: c.proxy.host})
		_, err := fmt.Fprintf(secure, "GET /api/v1/namespaces/%s/pods/%s/exec?container=main&stdout=true&command=touch&command=%s-left-%d HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n", ns, pod, pod, n, c.proxy.host)
		noError(t, err)
		r.taken(t, n+1)
		if n%2 > 0 { // half of them leave with the answer, the others before it
			_ = must[*http.Response](t)(http.ReadResponse(bufio.NewReader(secure), nil)).Body.Close()
		}
		noError(t, conn.Close())
	}
	casts := r.await(t, "the ends of all recordings", func([]string) bool { return true })
	var commands []string
	for _, text := range casts {
		commands = append(commands, strings.ReplaceAll(readCast(t, text).Command, " ", "&command="))
	}
	events, err := shared.cluster.AuditEvents(kubernetes.AuditFilter{ImpersonatedUser: c.user, Resource: "pods", Subresource: "exec"})
	noError(t, err)
	for _, e := range events {
		if !slices.ContainsFunc(commands, func(command string) bool { return strings.HasSuffix(e.RequestURI, "command="+command) }) {
			t.Errorf("the API server got %s, and the recorder nothing of it", e.RequestURI)
		}
	}
	if len(events) < sessions/2 {
		t.Errorf("%d sessions reached the API server", len(events))
	}
}

// taken waits until the recorder has the first lines of n recordings.
func (r *testRecorder) taken(t *testing.T, n int) {
	t.Helper()
	ctx := within(t, patience)
	for {
		r.mu.Lock()
		begun, changed := 0, r.changed
		for _, cast := range r.casts {
			begun += min(1, cast.Len())
		}
		r.mu.Unlock()
		if begun >= n {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("waiting for %d recordings: there are %d", n, begun)
		}
	}
}

// TestRecorderLost: the session of who must be recorded ends when the recorder is lost,
// and kubectl says why; nobody else's does.
func TestRecorderLost(t *testing.T) {
	t.Parallel()
	for _, p := range protocols {
		for _, enforced := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, enforced: %v", p.name, enforced), func(t *testing.T) {
				t.Parallel()
				r := newRecorder(t, false)
				c, ns, pod := recorded(t, enforced, r.addr())
				s := c.start(p, "exec", "-n", ns, "-i", pod, "--", "cat")
				s.ask("before\n", "before\n")
				r.die()
				if _, err := shared.proxy.WaitLog(within(t, patience), func(line string) bool {
					return strings.Contains(line, "the recording of a session is lost") && strings.Contains(line, c.user)
				}); err != nil {
					t.Fatal(err)
				}
				if !enforced {
					s.ask("after\n", "after\n")
					noError(t, s.stdin.Close())
					noError(t, s.wait(within(t, patience)))
				} else {
					s.expect("The recording of this session was lost")
					if err := s.wait(within(t, patience)); err == nil {
						t.Error("kubectl ends well")
					}
				}
				e := shared.proxy.waitRequest(t, func(e logEntry) bool { return e.Kind == "stream" && e.Namespace == ns })
				if e.Recording != "incomplete" {
					t.Errorf("the session was %+v", e)
				}
			})
		}
	}
}

// TestUnrecorded: who need not be recorded gets a session without a recorder, and the
// next one without waiting for it.
func TestUnrecorded(t *testing.T) {
	t.Parallel()
	c, ns, pod := recorded(t, false, deadRecorder(t))
	for range 2 {
		if out := c.mustKubectl("exec", "-n", ns, pod, "--", "echo", "hello"); out != "hello\n" {
			t.Errorf("the session says %q", out)
		}
	}
	e := shared.proxy.waitRequest(t, func(e logEntry) bool { return e.Kind == "stream" && e.Namespace == ns })
	if e.Recording != "none" {
		t.Errorf("the session was %+v", e)
	}
}

// TestRecorder: the program's own recorder takes a session, lists and plays it; when its
// disk is full, who must be recorded gets no session.
func TestRecorder(t *testing.T) {
	t.Parallel()
	for name, free := range map[string]string{"room": "0", "no room": "8E"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, host := t.TempDir(), unique("recorder")
			recordings := filepath.Join(dir, "recordings")
			noError(t, os.Mkdir(recordings, 0o700))
			keyFile := filepath.Join(dir, "authkey")
			noError(t, os.WriteFile(keyFile, []byte(shared.tailnet.AuthKey(tailnet.Identity{Tags: []string{recorderTag}})), 0o600))
			r := &proxy{tailnet: shared.tailnet, host: host + "." + shared.tailnet.Domain()}
			r.Process = must[*tailhelm.Process](t)(tailhelm.Start(context.WithoutCancel(t.Context()), tailhelm.Command{
				Path: shared.program, Env: environ(shared.tailnet, dir), Args: []string{
					"recorder", "--dir", recordings, "--hostname", host, "--login-server", shared.tailnet.URL(), "--from", proxyTag, "--min-free", free,
					"--auth-key-file", keyFile, "--state-dir", filepath.Join(dir, "state"), "--metrics-address", "127.0.0.1:0",
				},
			}))
			t.Cleanup(func() { noError(t, r.stop(context.Background())) })
			if free != "0" {
				r.readyz(t, "[+]tailnet ok", "[+]listening ok", "[-]disk failed: the disk of the recorder is full")
			} else {
				noError(t, r.WaitReady(within(t, patience)))
			}
			c, ns, pod := recorded(t, true, netip.AddrPortFrom(addressOf(t, host), 80))
			if free != "0" {
				_, stderr, err := c.kubectl("exec", "-n", ns, pod, "--", "echo", "hello")
				if err == nil || !strings.Contains(stderr, "no recorder takes it") {
					t.Errorf("without room: %v\n%s", err, stderr)
				}
				return
			}
			if out := c.mustKubectl("exec", "-n", ns, pod, "--", "echo", "hello"); out != "hello\n" {
				t.Errorf("the session says %q", out)
			}
			r.waitMetric(t, 1, "tailhelm_recorder_recordings_total", "result=complete")
			list := r.recorderCommand(t, "list", "--dir", recordings)
			file := regexp.MustCompile(`true\s+(\S+\.cast)\n`).FindStringSubmatch(list)
			if file == nil || !strings.Contains(list, c.user) || !strings.Contains(list, ns+"/"+pod) || !strings.Contains(list, `"echo hello"`) {
				t.Fatalf("listed:\n%s", list)
			}
			if played := r.recorderCommand(t, "play", "--speed=0", filepath.Join(recordings, file[1])); played != "hello\n" {
				t.Errorf("played: %q", played)
			}

			// Removed from the tailnet, it is there again as another device.
			before := deviceOf(t, r)
			noError(t, shared.tailnet.Remove(before.Name))
			r.readyz(t, "[-]tailnet failed: this device was removed from the tailnet")
			noError(t, r.WaitReady(within(t, patience)))
			if now := deviceOf(t, r); now.ID == before.ID || now.FQDN != before.FQDN {
				t.Errorf("device %+v, was %+v", now, before)
			}
		})
	}
}

// recorderCommand runs a command of the recorder and returns its output.
func (p *proxy) recorderCommand(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(within(t, patience), shared.program, append([]string{"recorder"}, args...)...)
	return string(must[[]byte](t)(cmd.Output()))
}

// addressOf is the address of a device that is not of this process.
func addressOf(t *testing.T, host string) netip.Addr {
	t.Helper()
	for _, d := range shared.tailnet.Devices() {
		if d.Name == host {
			return d.Addrs[0]
		}
	}
	t.Fatalf("no device %s", host)
	return netip.Addr{}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
)

// logged returns the first access log line without the fields that vary.
func (r *rig) logged(t *testing.T) map[string]any {
	t.Helper()
	line := r.logs.lines(t, "request", 1)[0]
	maps.DeleteFunc(line, func(name string, _ any) bool {
		return slices.Contains([]string{"time", "level", "msg", "seconds", "auditID"}, name)
	})
	return line
}

func TestAccessLog(t *testing.T) {
	common := func(fields map[string]any) map[string]any {
		all := map[string]any{
			"user": alice.User, "groups": []any{"readers", "writers"}, "node": alice.Node, "address": "127.0.0.2",
			"userAgent": "kubectl/v1", "bytesReceived": 0.0, "kind": "rest", "method": "GET", "code": 200.0, "bytes": 2.0,
		}
		maps.Copy(all, fields)
		return all
	}
	resource := func(verb, group, resource, sub, namespace, name string) map[string]any {
		return map[string]any{"verb": verb, "apiGroup": group, "resource": resource, "subresource": sub, "namespace": namespace, "name": name}
	}
	for name, tc := range map[string]struct {
		method, uri string
		want        map[string]any
	}{
		"resource":          {"GET", "/api/v1/namespaces/prod/pods/web-0", resource("get", "", "pods", "", "prod", "web-0")},
		"group":             {"GET", "/apis/apps/v1/namespaces/prod/deployments", resource("list", "apps", "deployments", "", "prod", "")},
		"subresource":       {"PATCH", "/apis/apps/v1/namespaces/prod/deployments/web/scale", resource("patch", "apps", "deployments", "scale", "prod", "web")},
		"delete collection": {"DELETE", "/api/v1/namespaces/prod/pods", resource("deletecollection", "", "pods", "", "prod", "")},
		"not a resource":    {"GET", "/openapi/v3?hash=x", map[string]any{"verb": "get", "path": "/openapi/v3"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, newAPIServer(t, nil), options{})
			r.do(t, alice.Addr, true, r.request(t, tc.method, tc.uri, nil, http.Header{"User-Agent": {"kubectl/v1"}}))
			want := common(tc.want)
			want["method"] = tc.method
			if diff := cmp.Diff(want, r.logged(t)); diff != "" {
				t.Errorf("log line (-want +got):\n%s", diff)
			}
		})
	}
}

// What authenticates, and what is said, stays out of the log, whatever happens to
// the request.
func TestLogHoldsNoSecrets(t *testing.T) {
	const secret = "hunter2"
	upgrade := []string{"Connection: Upgrade", "Upgrade: websocket"}
	session := append(upgrade, "Sec-WebSocket-Protocol: v4.channel.k8s.io, "+bearerSubprotocol+secret)
	for name, tc := range map[string]struct {
		mode    Mode
		uri     string
		lines   []string
		handler http.HandlerFunc
		down    bool
		// recorded is a session of a caller with a recorder; without, one who must have one.
		recorded, without bool
	}{
		"auth":            {mode: ModeAuth, uri: "/api/v1/namespaces/a/secrets"},
		"noauth":          {mode: ModeNoAuth, uri: "/api/v1/namespaces/a/secrets"},
		"refused":         {mode: ModeAuth, uri: "/api", lines: []string{"Impersonate-Extra-Token: " + secret}},
		"bad request":     {mode: ModeAuth, uri: "/api/v1/watch"},
		"not a resource":  {mode: ModeAuth, uri: "/custom"},
		"API server down": {mode: ModeAuth, uri: "/api", down: true},
		"upgrade":         {mode: ModeNoAuth, uri: "/api", lines: upgrade, handler: echo},
		"bearer protocol": {mode: ModeAuth, uri: "/api", lines: []string{"Sec-WebSocket-Protocol: " + bearerSubprotocol + secret}},
		"broken off":      {mode: ModeAuth, uri: "/api", handler: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		"said in answers": {mode: ModeAuth, uri: "/api", handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Token", secret)
			_, _ = io.WriteString(w, secret)
		}},
		"address and user":         {mode: ModeAuth, uri: "https://admin:" + secret + "@" + deviceName + "/api/v1/watch"},
		"session":                  {mode: ModeAuth, uri: podPath + "/exec", lines: session, handler: speak, recorded: true},
		"session, noauth":          {mode: ModeNoAuth, uri: podPath + "/exec", lines: session, handler: speak, recorded: true},
		"session, refused":         {mode: ModeNoAuth, uri: podPath + "/exec", lines: session, handler: speak, without: true},
		"session, unrecordable":    {mode: ModeNoAuth, uri: podPath + "/exec", lines: append(session, "Sec-WebSocket-Protocol: "+secret), recorded: true},
		"session, odd protocol":    {mode: ModeNoAuth, uri: podPath + "/exec", lines: []string{"Connection: Upgrade", "Upgrade: " + secret}, recorded: true},
		"session, API server down": {mode: ModeNoAuth, uri: podPath + "/exec", lines: session, down: true, recorded: true},
		"two tokens":               {mode: ModeNoAuth, uri: podPath + "/proxy", lines: session, recorded: true},
	} {
		t.Run(name, func(t *testing.T) {
			api := newAPIServer(t, tc.handler)
			r := start(t, api, options{mode: tc.mode})
			if tc.recorded {
				r.grant(true, newRecorder(t, false).addr)
			} else if tc.without {
				r.grant(true, netip.MustParseAddrPort(deadAddr))
			}
			if tc.down {
				api.Close()
			}
			uri := tc.uri + "?token=" + secret
			lines := append([]string{"Authorization: Bearer " + secret, "Cookie: session=" + secret, "X-Remote-User: " + secret}, tc.lines...)
			if len(tc.lines) > 0 && tc.lines[0] == upgrade[0] {
				lines = append(lines, "Content-Length: 0")
			} else {
				lines = append(lines, "Content-Length: 7", "Content-Type: text/plain\r\n\r\n"+secret)
			}
			r.raw(t, "POST "+uri+" HTTP/1.1", lines...)
			r.logs.lines(t, "request", 1)
			r.stop()
			_ = receive(t, r.served, "the end of Serve")
			if text := r.logs.String(); strings.Contains(text, secret) || strings.Contains(text, ourToken) {
				t.Errorf("the log holds a secret:\n%s", text)
			}
		})
	}
}

// What a line of the log says is bounded, whoever chose it.
func TestLogIsBounded(t *testing.T) {
	long := strings.Repeat("%01", 15_000)
	words := strings.Repeat("w", 50_000)
	api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Audit-Id", r.Header.Get("Audit-Id")) })
	r := start(t, api, options{})
	wordy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X", words)
		http.Error(w, words, http.StatusTeapot)
	}))
	defer wordy.Close()
	at := netip.MustParseAddrPort(wordy.Listener.Addr().String())
	sessions := []string{"Connection: Upgrade", "Upgrade: websocket"}
	requests := 0
	for _, enforced := range []bool{true, false} {
		r.grant(enforced, slices.Repeat([]netip.AddrPort{at, netip.MustParseAddrPort(deadAddr)}, 1000)...)
		for _, tc := range []struct {
			line  string
			lines []string
		}{
			{"GET /api/v1/x", []string{"Audit-Id: " + words}},
			{"GET /api/" + long + "/watch", nil},
			{"GET /" + long, nil},
			{"GET /api/v1/x", []string{"User-Agent: " + words}},
			{"GET /apis/" + words[:9000] + "/v1/namespaces/" + words[:9000] + "/" + words[:9000] + "/" + words[:9000] + "/" + words[:9000], nil},
			{words + " /api", nil},
			{"GET " + podPath + "/exec", sessions},
			{"GET " + podPath + "/exec", []string{"Connection: Upgrade", "Upgrade: " + words}},
			{"GET " + podPath + "/exec", append(sessions, "Sec-WebSocket-Protocol: "+words)},
		} {
			r.raw(t, tc.line+" HTTP/1.1", tc.lines...)
			requests++
		}
	}
	r.logs.lines(t, "request", requests)
	for line := range strings.Lines(r.logs.String()) {
		var attrs map[string]any
		if err := json.Unmarshal([]byte(line), &attrs); err != nil {
			t.Fatal(err)
		}
		for name, value := range attrs {
			limit := maxLogged
			if strings.HasSuffix(strings.ToLower(name), "error") {
				limit = maxLoggedError
			}
			if text, _ := value.(string); len(text) > limit+len("...") {
				t.Errorf("%s of %v has %d bytes: %.60q", name, attrs["msg"], len(text), text)
			}
		}
	}
}

func TestMetrics(t *testing.T) {
	arrived, release := make(chan struct{}, 8), make(chan struct{})
	api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if isUpgrade(r) {
			echo(w, r)
			return
		}
		w.WriteHeader(http.StatusAccepted)
		_ = http.NewResponseController(w).Flush()
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	r := start(t, api, options{})
	done := make(chan struct{})
	for _, uri := range []string{"/api/v1/pods", "/api/v1/pods?watch=1"} {
		request := r.request(t, http.MethodGet, uri, nil, nil)
		go func() {
			defer func() { done <- struct{}{} }()
			if res, err := r.client(t, alice.Addr, true).Do(request); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
		}()
		receive(t, arrived, "a request")
	}
	s := r.stream(t, alice.Addr, http.MethodPost, "SPDY/3.1")
	inFlight := func(kind Kind) float64 {
		return metric(t, r.metrics, "tailhelm_apiproxy_requests_in_flight", "kind", string(kind))
	}
	for _, kind := range []Kind{KindREST, KindWatch, KindStream} {
		if got := inFlight(kind); got != 1 {
			t.Errorf("%v requests of kind %s in flight, want 1", got, kind)
		}
	}
	if got := metric(t, r.metrics, "tailhelm_apiproxy_connections"); got != 3 {
		t.Errorf("%v connections, want 3", got)
	}
	close(release)
	_ = s.Close()
	receive(t, done, "an answer")
	receive(t, done, "an answer")
	r.get(t, stranger, "/api", nil)
	r.logs.lines(t, "request", 4)
	for _, want := range []struct {
		name   string
		labels []string
		value  float64
	}{
		{"requests_total", []string{"verb", "list", "code", "202", "kind", "rest"}, 1},
		{"requests_total", []string{"verb", "watch", "code", "202", "kind", "watch"}, 1},
		{"requests_total", []string{"verb", "create", "code", "101", "kind", "stream"}, 1},
		{"requests_total", []string{"verb", "unknown", "code", "401", "kind", "rest"}, 1},
		{"request_duration_seconds", []string{"verb", "list", "kind", "rest"}, 1},
		{"request_duration_seconds", []string{"verb", "watch", "kind", "watch"}, 1},
		{"request_duration_seconds", []string{"verb", "create", "kind", "stream"}, 1},
		{"refusals_total", []string{"reason", "unknown_peer"}, 1},
		{"impersonations_total", []string{"caller", "user"}, 3},
		{"connections_turned_away_total", nil, 0},
	} {
		if got := metric(t, r.metrics, "tailhelm_apiproxy_"+want.name, want.labels...); got != want.value {
			t.Errorf("%s%v is %v, want %v", want.name, want.labels, got, want.value)
		}
	}
	for _, kind := range []Kind{KindREST, KindWatch, KindStream} {
		eventually(t, "nothing is in flight", func() bool { return inFlight(kind) == 0 })
	}
}

// A client cannot make up series.
func TestLabelsAreBounded(t *testing.T) {
	r := start(t, newAPIServer(t, nil), options{})
	for _, line := range []string{
		"BREW /api/v1/pods", "brew /teapot", "M-SEARCH /", "get /api/v1/pods", "PROPFIND /apis/a/b/c/d/e",
		"GET /api/v1/proxy/nodes/n", "GET /api/v1/watch/pods", "HEAD /version", "OPTIONS /", "TRACE /x", "CONNECT x:443", "GET /version",
	} {
		r.raw(t, line+" HTTP/1.1")
	}
	r.logs.lines(t, "request", 12)
	want := []string{"get", "head", "options", "other", "proxy", "unknown", "watch"}
	if diff := cmp.Diff(want, labelValues(t, r.metrics, "tailhelm_apiproxy_requests_total", "verb")); diff != "" {
		t.Errorf("verbs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"rest", "watch"}, labelValues(t, r.metrics, "tailhelm_apiproxy_requests_total", "kind"), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("kinds (-want +got):\n%s", diff)
	}
}

// What answers through the API server cannot make up series either.
func TestCodesAreBounded(t *testing.T) {
	r := start(t, newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.URL.Query().Get("code"))
		if err != nil {
			t.Error(err)
		}
		w.WriteHeader(code)
	}), options{})
	for _, code := range []int{200, 404, 499, 600, 799, 999} {
		r.get(t, alice.Addr, fmt.Sprint("/api/v1/namespaces/a/pods/b/proxy/?code=", code), nil)
	}
	r.logs.lines(t, "request", 6)
	if diff := cmp.Diff([]string{"200", "404", "499", "other"}, labelValues(t, r.metrics, "tailhelm_apiproxy_requests_total", "code")); diff != "" {
		t.Errorf("codes (-want +got):\n%s", diff)
	}
}

// Nothing that a client chose commands the terminal of somebody who reads the log.
func TestLogHasNoControls(t *testing.T) {
	r := start(t, newAPIServer(t, nil), options{})
	const csi = "\u009b2J"
	r.get(t, alice.Addr, "/api/v1/namespaces/"+url.PathEscape(csi+"\x7f")+"/pods", http.Header{"User-Agent": {csi}})
	r.logs.lines(t, "request", 1)
	if log := r.logs.String(); strings.ContainsFunc(log, func(c rune) bool { return c != '\n' && unicode.IsControl(c) }) || !strings.Contains(log, "\ufffd2J") {
		t.Errorf("the log is %q", log)
	}
}

// Gauges exist before the first request, so that alerts on them work.
func TestMetricsBeforeRequests(t *testing.T) {
	registry := prometheus.NewRegistry()
	NewMetrics(registry)
	if diff := cmp.Diff([]string{"rest", "stream", "watch"}, labelValues(t, registry, "tailhelm_apiproxy_requests_in_flight", "kind")); diff != "" {
		t.Errorf("kinds (-want +got):\n%s", diff)
	}
}

// Which requests have a line in the log is chosen, whatever level the log has. All are
// counted.
func TestAccessLogs(t *testing.T) {
	for kind, want := range map[AccessLog][]string{
		"":                {"get", "create", "watch", "exec", "unknown"},
		AccessLogAll:      {"get", "create", "watch", "exec", "unknown"},
		AccessLogMutating: {"create", "exec", "unknown"},
		AccessLogNone:     {"exec", "unknown"},
	} {
		t.Run("="+string(kind), func(t *testing.T) {
			r := start(t, newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				if isUpgrade(r) {
					http.Error(w, "no", http.StatusForbidden)
				}
			}), options{})
			r.proxy.config.AccessLog = kind
			r.proxy.config.Log = slog.New(slog.NewJSONHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelError}))
			r.get(t, alice.Addr, "/version", nil)
			r.do(t, alice.Addr, true, r.request(t, http.MethodPost, "/api/v1/namespaces/a/pods", nil, nil))
			r.get(t, alice.Addr, "/api/v1/pods?watch=1", nil)
			if _, code := r.upgrade(t, alice.Addr, http.MethodPost, "SPDY/3.1"); code != http.StatusForbidden {
				t.Errorf("the session is answered %d", code)
			}
			r.get(t, stranger, "/version", nil) // refused
			eventually(t, "all requests are counted", func() bool {
				sum := 0.0
				for _, s := range gather(t, r.metrics, "tailhelm_apiproxy_requests_total") {
					sum += s.value
				}
				return sum == 5
			})
			r.stop()
			if err := receive(t, r.served, "the end of Serve"); err != nil {
				t.Error(err)
			}
			var got []string
			for _, line := range r.logs.lines(t, "request", len(want)) {
				switch {
				case line["refused"] != nil:
					got = append(got, "unknown")
				case line["subresource"] == "exec":
					got = append(got, "exec")
				default:
					got = append(got, line["verb"].(string))
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("logged are %q, want %q", got, want)
			}
		})
	}
}

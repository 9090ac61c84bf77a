// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// statusOf decodes a Status in the media type that it claims to have.
func statusOf(t *testing.T, res *http.Response, body string) *metav1.Status {
	t.Helper()
	info, ok := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), res.Header.Get("Content-Type"))
	if !ok {
		t.Fatalf("a refusal in the media type %q: %s", res.Header.Get("Content-Type"), body)
	}
	object, _, err := info.Serializer.Decode([]byte(body), nil, nil)
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	status, ok := object.(*metav1.Status)
	if !ok {
		t.Fatalf("a %T", object)
	}
	return status
}

// checkRefusal checks that a refusal is a Status with code, reason and something
// of a message, and that it was counted and logged under label.
func (r *rig) checkRefusal(t *testing.T, res *http.Response, body string, code int, reason metav1.StatusReason, label, message string) {
	t.Helper()
	status := statusOf(t, res, body)
	want := &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: status.Message, //nolint:gosec // an HTTP status
	}
	if diff := cmp.Diff(want, status); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if res.StatusCode != code {
		t.Errorf("HTTP status %d, want %d", res.StatusCode, code)
	}
	if !strings.Contains(status.Message, message) || !strings.HasSuffix(status.Message, ".") {
		t.Errorf("message %q, want a sentence with %q", status.Message, message)
	}
	if got := res.Header.Get(headerRefused); got != label {
		t.Errorf("the answer says that the proxy refuses for %q, want %q", got, label)
	}
	if got := metric(t, r.metrics, "tailhelm_apiproxy_refusals_total", "reason", label); got != 1 {
		t.Errorf("%v refusals with the reason %s were counted, want 1", got, label)
	}
	if line := r.logs.lines(t, "request", 1)[0]; line["refused"] != label || line["code"] != float64(code) {
		t.Errorf("logged as %v, want refused=%s", line, label)
	} else if id := res.Header.Get(headerAuditID); line["auditID"] != id || !isUUID(id) {
		t.Errorf("logged as %v, and the audit ID of the answer is %q", line, id)
	}
}

// mustNotReach fails the test when the API server was asked anything.
func (s *apiServer) mustNotReach(t *testing.T) {
	t.Helper()
	if got := s.all(); got != nil {
		t.Errorf("the API server was asked: %+v", got)
	}
}

func TestRefusesCallers(t *testing.T) {
	grant := &identity.GrantError{Capability: identity.Capability, Index: 2, Err: errors.New("it must be a JSON object")}
	for name, tc := range map[string]struct {
		addr    netip.Addr
		err     error
		code    int
		reason  metav1.StatusReason
		label   string
		message string
	}{
		"unknown peer":    {stranger, nil, 401, metav1.StatusReasonUnauthorized, reasonUnknownPeer, "belongs to no device of the tailnet"},
		"expired key":     {alice.Addr, identity.ErrExpired, 401, metav1.StatusReasonUnauthorized, reasonExpired, "Log the device in to the tailnet again"},
		"no name":         {alice.Addr, fmt.Errorf("%w: name %q is empty", identity.ErrNoName, ""), 401, metav1.StatusReasonUnauthorized, reasonNoName, `name "" is empty`},
		"malformed grant": {alice.Addr, grant, 403, metav1.StatusReasonForbidden, reasonMalformedGrant, `value 2 of the capability "tailscale.com/cap/kubernetes" that the tailnet policy grants to the caller is malformed: it must be a JSON object`},
		"no answer":       {alice.Addr, errors.New("asking the tailnet: broken pipe"), 503, metav1.StatusReasonServiceUnavailable, reasonIdentityUnknown, "cannot find out who is calling"},
	} {
		for _, mode := range []Mode{ModeAuth, ModeNoAuth} {
			t.Run(name+", "+string(mode), func(t *testing.T) {
				api := newAPIServer(t, nil)
				r := start(t, api, options{mode: mode})
				r.peers.change(func(_ map[netip.Addr]identity.Identity, errs map[netip.Addr]error) { errs[tc.addr] = tc.err })
				res, body := r.get(t, tc.addr, "/api/v1/pods", http.Header{
					"Authorization": {"Bearer client"}, "X-Forwarded-For": {bob.Addr.String()}, "X-Real-Ip": {bob.Addr.String()}, "Tailscale-User-Login": {bob.User},
				})
				r.checkRefusal(t, res, body, tc.code, tc.reason, tc.label, tc.message)
				api.mustNotReach(t)
				if strings.Contains(body, "broken pipe") {
					t.Errorf("the client is told of the inside: %s", body)
				}
			})
		}
	}
}

func TestRefusesImpersonation(t *testing.T) {
	for _, header := range []string{
		"Impersonate-User: admin", "impersonate-user: admin", "IMPERSONATE-GROUP: system:masters", "Impersonate-Uid: 0",
		"Impersonate-Extra-Scopes: all", "impersonate-extra-a%2Fb: x", "Impersonate-Anything: later", "Impersonate-User:", "Impersonate-: x",
	} {
		t.Run(header, func(t *testing.T) {
			api := newAPIServer(t, echo)
			r := start(t, api, options{})
			if code := r.raw(t, "GET /api HTTP/1.1", header, "Connection: Impersonate-User, Impersonate-Group"); code != http.StatusForbidden {
				t.Errorf("status %d, want 403", code)
			}
			if _, code := r.upgrade(t, alice.Addr, http.MethodPost, "SPDY/3.1", header); code != http.StatusForbidden {
				t.Errorf("an upgrade: status %d, want 403", code)
			}
			api.mustNotReach(t)
		})
	}
}

func TestRefusesImpersonationSaysWhatToDo(t *testing.T) {
	api := newAPIServer(t, nil)
	r := start(t, api, options{})
	res, body := r.get(t, alice.Addr, "/api", http.Header{"Impersonate-User": {"admin"}})
	r.checkRefusal(t, res, body, 403, metav1.StatusReasonForbidden, reasonImpersonation, `This proxy impersonates you, "alice@example.com", and nobody else. Drop --as and --as-group,`)
}

func TestRefusesRequests(t *testing.T) {
	for name, tc := range map[string]struct {
		line string
		code int
	}{
		"CONNECT":                        {"CONNECT evil.example:443 HTTP/1.1", 400},
		"CONNECT with a path":            {"CONNECT /api HTTP/1.1", 400},
		"a path that the API rejects":    {"GET /api/v1/watch HTTP/1.1", 400},
		"no path":                        {"GET mailto:x HTTP/1.1", 400},
		"an upgrade that is not a token": {"GET /api HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: \x80", 400},
	} {
		t.Run(name, func(t *testing.T) {
			api := newAPIServer(t, nil)
			r := start(t, api, options{})
			if code := r.raw(t, tc.line); code != tc.code {
				t.Errorf("status %d, want %d", code, tc.code)
			}
			api.mustNotReach(t)
		})
	}
}

// The message of a bad request must not repeat what the client has put into its URL.
func TestBadRequestRepeatsNoSecrets(t *testing.T) {
	r := start(t, newAPIServer(t, nil), options{})
	res, body := r.get(t, alice.Addr, "/api/v1/watch?access_token=secret-of-the-client", nil)
	r.checkRefusal(t, res, body, 400, metav1.StatusReasonBadRequest, reasonBadRequest, "/api/v1/watch")
	if strings.Contains(body+r.logs.String(), "secret-of-the-client") {
		t.Errorf("the query is repeated:\n%s\n%s", body, r.logs)
	}
}

func TestRefusalMediaTypes(t *testing.T) {
	const protobuf = "application/vnd.kubernetes.protobuf"
	for accept, want := range map[string]string{
		"":                 "application/json",
		"*/*":              "application/json",
		"application/json": "application/json",
		"application/yaml": "application/yaml",
		protobuf:           protobuf,
		protobuf + ", */*": protobuf,
		"application/yaml;q=0.1, application/json;q=0.2":                 "application/json",
		"application/json;as=Table;v=v1;g=meta.k8s.io, application/json": "application/json",
		"application/json;as=Table;v=v1;g=meta.k8s.io":                   "application/json",
		protobuf + ";stream=watch":                                       protobuf,
		"text/html":                                                      "application/json",
		"application/cbor, application/json;q=0.9":                       "application/json",
		"nonsense;;=": "application/json",
	} {
		t.Run(accept, func(t *testing.T) {
			r := start(t, newAPIServer(t, nil), options{})
			res, body := r.get(t, stranger, "/api/v1/pods?watch=1", http.Header{"Accept": {accept}})
			if got := res.Header.Get("Content-Type"); got != want {
				t.Errorf("Content-Type %q, want %q", got, want)
			}
			if res.Header.Get("Cache-Control") != "no-cache, private" || res.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("header %v", res.Header)
			}
			r.checkRefusal(t, res, body, 401, metav1.StatusReasonUnauthorized, reasonUnknownPeer, "tailnet")
		})
	}
}

func TestAPIServerDown(t *testing.T) {
	api := newAPIServer(t, nil)
	r := start(t, api, options{})
	api.Close()
	for i, request := range []*http.Request{
		r.request(t, http.MethodGet, "/api/v1/pods", nil, nil), r.request(t, http.MethodPost, "/api/v1/pods", strings.NewReader("{}"), nil),
	} {
		res, body := r.do(t, alice.Addr, true, request)
		if i == 0 {
			r.checkRefusal(t, res, body, 503, metav1.StatusReasonServiceUnavailable, reasonUpstream, "cannot be reached")
		} else if res.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("status %s", res.Status)
		}
		if strings.Contains(body, "127.0.0.1") {
			t.Errorf("the client is told the API server's address: %s", body)
		}
	}
	if _, code := r.upgrade(t, alice.Addr, http.MethodPost, "SPDY/3.1"); code != http.StatusServiceUnavailable {
		t.Errorf("an upgrade: status %d, want 503", code)
	}
}

func TestCredentialsFail(t *testing.T) {
	api := newAPIServer(t, nil)
	config := rest.AnonymousClientConfig(api.config())
	config.Wrap(func(http.RoundTripper) http.RoundTripper {
		return roundTripper(func(*http.Request) (*http.Response, error) { return nil, fmt.Errorf("%w: forbidden", ErrCredentials) })
	})
	r := start(t, api, options{config: config})
	res, body := r.get(t, alice.Addr, "/api", nil)
	r.checkRefusal(t, res, body, 503, metav1.StatusReasonServiceUnavailable, reasonCredentials, "cannot get the credentials")
	api.mustNotReach(t)
}

// roundTripper is a function that is a transport.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestRefusesGroups(t *testing.T) {
	api := newAPIServer(t, nil)
	r := start(t, api, options{refusedGroups: []string{"writers"}})
	res, body := r.get(t, alice.Addr, "/api", nil)
	if res.StatusCode != http.StatusForbidden || !strings.Contains(body, `\"writers\"`) {
		t.Errorf("a caller with a refused group is told %d %s", res.StatusCode, body)
	}
	if got := api.all(); len(got) != 0 {
		t.Errorf("the API server got %v", got)
	}
	if res, body := r.get(t, ci.Addr, "/api", nil); res.StatusCode != http.StatusOK {
		t.Errorf("a caller without it is told %d %s", res.StatusCode, body)
	}
}

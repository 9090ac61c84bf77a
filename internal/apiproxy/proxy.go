// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/tailhelm/tailhelm/internal/identity"
	"github.com/tailhelm/tailhelm/internal/limit"
	"github.com/tailhelm/tailhelm/internal/recording"
)

// Mode is what the proxy does about who is calling.
type Mode string

// The modes.
const (
	// ModeAuth impersonates the caller, so that Kubernetes RBAC decides.
	ModeAuth Mode = "auth"
	// ModeNoAuth only connects: the client authenticates to the API server itself.
	ModeNoAuth Mode = "noauth"
)

// Peers knows who is at the addresses of the tailnet.
type Peers interface {
	// Identify returns who is at addr. It is asked for every request and must be
	// cheap. Its errors are those of [identity.FromWhoIs], or another error when it
	// cannot tell.
	Identify(ctx context.Context, addr netip.Addr) (identity.Identity, error)
	// Changed returns a channel that is closed when an answer may have changed
	// since the call of Changed.
	Changed() <-chan struct{}
}

// Config is what a [Proxy] is made of. All fields are required, except for
// RefusedGroups, FewerGroups and AccessLog.
type Config struct {
	// Mode is what to do about who is calling.
	Mode Mode
	// Upstream is the API server, and in ModeAuth the credentials with which the
	// proxy impersonates callers. They should have no other power.
	Upstream *rest.Config
	// Peers identifies callers.
	Peers Peers
	// RefusedGroups are Kubernetes groups that nobody can be in through this proxy in
	// ModeAuth: who has been granted one is refused. RBAC can list the groups that may
	// be impersonated, but cannot leave some out of all.
	RefusedGroups []string
	// FewerGroups lets clients ask for some of the caller's groups alone. What forbids
	// something to members of a group, as policies at admission do, does not see the others
	// then; RBAC only allows.
	FewerGroups bool
	// Name returns the name of the device that the proxy is served on: its FQDN
	// without the trailing dot.
	Name func() string
	// DialRecorder reaches the recorders that the tailnet policy names for a caller, on
	// the tailnet and nowhere else.
	DialRecorder recording.Dial
	// Log gets a line for each request of AccessLog.
	Log *slog.Logger
	// AccessLog says which requests get a line in Log, whatever level Log has; "" means
	// AccessLogAll.
	AccessLog AccessLog
	// Metrics counts requests.
	Metrics *Metrics
}

// Proxy is the http.Handler that carries requests of tailnet devices to the API
// server. Its requests' RemoteAddr must be that of the connection's peer.
type Proxy struct {
	config    Config
	upstream  *upstream
	reverse   *httputil.ReverseProxy
	recorders *recording.Recorders
	calls     *calls
	// eventsLost warns of events that no recorder took.
	eventsLost limit.Warning
}

// New returns a Proxy. It errs when config does not describe a way to the API
// server; it connects to nothing.
func New(config Config) (*Proxy, error) {
	if config.Mode != ModeAuth && config.Mode != ModeNoAuth {
		return nil, fmt.Errorf("mode %q is none of %q and %q", config.Mode, ModeAuth, ModeNoAuth)
	}
	up, err := newUpstream(config)
	if err != nil {
		return nil, err
	}
	p := &Proxy{config: config, upstream: up, recorders: recording.NewRecorders(config.DialRecorder), calls: newCalls()}
	p.reverse = &httputil.ReverseProxy{
		Rewrite:        p.rewrite,
		Transport:      up,
		ModifyResponse: p.answer,
		ErrorHandler:   p.fail,
		BufferPool:     buffers,
		ErrorLog:       slog.NewLogLogger(config.Log.Handler(), slog.LevelDebug),
	}
	return p, nil
}

// CheckReachable asks the API server for its version, and returns what keeps the proxy from
// using it. In ModeAuth it asks over the connection that requests share: called again and
// again it keeps it open, so that no request has to wait for one. In ModeNoAuth it has a
// connection of its own and no credentials, and an API server that refuses those is
// reachable all the same.
func (p *Proxy) CheckReachable(ctx context.Context) error { return p.upstream.check(ctx) }

// Watch ends open requests whose caller's identity changes, until ctx is done.
// Without it, identity is asked only when a request begins.
func (p *Proxy) Watch(ctx context.Context) { p.calls.watch(ctx, p.config.Peers) }

// ServeHTTP carries r to the API server, or refuses it.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, end := context.WithCancelCause(r.Context())
	defer end(nil)
	c := &call{start: time.Now(), auditID: auditIDOf(p.config.Mode, r.Header), kind: KindREST, end: end}
	seen := &responseWriter{ResponseWriter: w, ctx: ctx}
	done := func() {}
	defer func() { done() }()                                   // the call is over when its line is written
	defer func() { p.record(c, r, seen, context.Cause(ctx)) }() // also when the reverse proxy panics to abort the response
	defer boundClient(ctx, w, r)()
	if f := p.admit(ctx, c, r); f != nil {
		p.refuse(seen, r, c, f)
		return
	}
	removed, f := p.calls.add(c)
	if f != nil {
		p.refuse(seen, r, c, f)
		return
	}
	done = removed
	p.config.Metrics.begin(c)
	defer p.config.Metrics.end(c)
	defer p.finishRecording(c)
	called := r.WithContext(withCall(ctx, c))
	if err := p.recordEvent(ctx, c, r); err != nil {
		p.fail(seen, called, err)
		return
	}
	if err := p.startRecording(ctx, c, r); err != nil {
		p.fail(seen, called, err)
		return
	}
	p.reverse.ServeHTTP(seen, called.WithContext(c.traced(called.Context())))
}

// admit finds out who calls and what for, and whether that can go on.
func (p *Proxy) admit(ctx context.Context, c *call, r *http.Request) *refusal {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return refuseIdentity(fmt.Errorf("the connection's address %q: %w", r.RemoteAddr, err))
	}
	c.addr = peer.Addr().Unmap().WithZone("")
	if c.caller, err = p.config.Peers.Identify(ctx, c.addr); err != nil {
		return refuseIdentity(err)
	}
	if r.Method == http.MethodConnect || r.URL.Path == "" || r.URL.Path[0] != '/' {
		return refuseBadRequest("This is the Kubernetes API, not a forward proxy: use its address as the server of a kubeconfig.", nil)
	}
	if escapes(r.URL.Path) {
		return refuseBadRequest("The path has a segment . or .., which the API server does not know.", nil)
	}
	if c.info, c.kind, err = classify(r); err != nil {
		return refuseBadRequest(fmt.Sprintf("The API server would not understand this request: %v.", err), err)
	}
	// The API server hands the body of an upgrade on to the container runtime. It would be a
	// part of the session that passes before there is one, past everything that looks at
	// sessions. Clients send none.
	if isUpgrade(r) && r.ContentLength != 0 {
		return refuseBadRequest("A request that asks for an upgrade of the connection cannot have a body. Send what it holds when the connection is upgraded.", nil)
	}
	if f := checkRecording(c, r); f != nil {
		return f
	}
	c.toRecord = len(c.caller.Recorders) > 0 && c.isSession() && isUpgrade(r)
	if p.config.Mode == ModeAuth {
		return p.admitCaller(c, r)
	}
	return nil
}

// admitCaller finds out whether the caller can be impersonated for r.
func (p *Proxy) admitCaller(c *call, r *http.Request) *refusal {
	if f := checkGroups(c.caller.Groups, p.config.RefusedGroups); f != nil {
		return f
	}
	if f := checkHost(r, p.config.Name()); f != nil {
		return f
	}
	if f := checkOrigin(r); f != nil {
		return f
	}
	c.ambient = len(r.Header["Authorization"]) == 0
	var f *refusal
	c.groups, f = narrow(r.Header, c.caller, p.config.FewerGroups)
	c.narrowed = f == nil && !slices.Equal(c.groups, c.caller.Groups)
	return f
}

// checkGroups refuses a caller that has one of the refused groups.
func checkGroups(groups, refused []string) *refusal {
	for _, group := range refused {
		if slices.Contains(groups, group) {
			return refuseForbidden(reasonGroup, fmt.Sprintf("The tailnet policy grants you the Kubernetes group %q, which this proxy gives to nobody. Ask an administrator to grant another group, or to allow this one (apiServerProxyConfig.impersonation.groups of the chart).", group), nil)
		}
	}
	return nil
}

// rewrite makes the request that goes to the API server.
func (p *Proxy) rewrite(pr *httputil.ProxyRequest) {
	c := callFrom(pr.In.Context())
	pr.SetURL(p.upstream.target) // keeps a base path, and makes Host the API server's
	pr.Out.Trailer = nil
	h := pr.Out.Header
	dropProxyClaims(h)
	h[headerForwardedFor] = []string{c.addr.String()}
	h[headerAuditID] = []string{c.auditID} // known from here on, even if no answer comes
	if p.config.Mode == ModeAuth {
		dropCredentials(h)
		impersonate(h, c.caller.User, c.groups)
		p.config.Metrics.impersonate(c.caller)
	}
	markUpload(pr.Out)
	makeReplayable(pr.Out)
}

// answer notes a response of the API server before it is sent on.
func (p *Proxy) answer(r *http.Response) error {
	c := callFrom(r.Request.Context())
	if c.ambient {
		isolate(r.Header)
	}
	// Another ID than ours comes from an API server behind something that drops ours. To a
	// request for an upgrade, whatever runs in a pod may have written the answer.
	if id := r.Header.Get(headerAuditID); id != "" && !isUpgrade(r.Request) {
		c.auditID = id
	}
	if c.kind == KindWatch && r.StatusCode == http.StatusOK {
		r.Body = p.calls.watching(c, r.Body)
	}
	if rec := c.recording; rec != nil && r.StatusCode != http.StatusSwitchingProtocols {
		rec.answer = r.StatusCode
	}
	if conn, ok := r.Body.(io.ReadWriteCloser); ok && r.StatusCode == http.StatusSwitchingProtocols {
		conn, err := p.tap(c, conn, r)
		if err != nil {
			return err
		}
		r.Body = &apiStream{ReadWriteCloser: conn, ctx: r.Request.Context()}
	}
	return nil
}

// fail answers a request that the API server has not answered, or not so that it can be
// sent on.
func (p *Proxy) fail(w http.ResponseWriter, r *http.Request, err error) {
	c := callFrom(r.Context())
	if rec := c.recording; rec != nil && rec.began && rec.err == nil {
		rec.err = rec.to.BreakOff(err) // a session that the client does not get
	}
	f := failure(r, err)
	if f == nil {
		w.WriteHeader(statusClientClosed) // for the log: nobody is there to read it
		return
	}
	p.refuse(w, r, c, f)
}

// failure returns what a client is told whose request r failed with err. It returns nil if
// the client has gone.
func failure(r *http.Request, err error) *refusal {
	var f *refusal
	var upload *uploadError
	cause := context.Cause(r.Context()) // of the call's end, if something ended it
	switch {
	case errors.As(cause, &f), errors.As(err, &f): // ended from outside, or by us
		return f
	case errors.Is(cause, errDrained):
		return refuseUnavailable(reasonDraining, "The proxy is shutting down. Try again.", err)
	case cause != nil:
		return nil
	case errors.As(err, &upload):
		if upload.gone {
			return nil
		}
		return refuseBadRequest("The body of the request cannot be read: it is not in the chunks that its header announces.", err)
	case asksForNoProtocol(r):
		return refuseBadRequest("The header Upgrade names no protocol: it has other characters than those of ASCII.", err)
	case errors.Is(err, errNotImpersonated):
		return refuseDefect(reasonNotImpersonated, "The proxy was about to send this request without saying who is calling, and did not send it.", err)
	case errors.Is(err, errNotRecorded):
		return refuseDefect(reasonNotRecorded, "The proxy was about to begin a session without a recording that the tailnet policy demands (enforceRecorder), and did not begin it.", err)
	case errors.Is(err, ErrCredentials):
		return refuseUnavailable(reasonCredentials, "The proxy cannot get the credentials with which it impersonates callers. Its log says why.", err)
	}
	return refuseUnavailable(reasonUpstream, statusUpstreamSentence, err)
}

// refuseDefect refuses a request that the proxy was about to get wrong, as message says.
func refuseDefect(label, message string, cause error) *refusal {
	return &refusal{
		label: label, code: http.StatusInternalServerError, reason: metav1.StatusReasonInternalError, cause: cause,
		message: message + " This is a defect of the proxy: please report it.",
	}
}

// refuse answers r with f. The header alone has the audit ID: a message that is another one
// each time cannot be counted, and makes controllers that keep it in a status write again and
// again.
func (p *Proxy) refuse(w http.ResponseWriter, r *http.Request, c *call, f *refusal) {
	c.refused = f
	w.Header().Set(headerAuditID, c.auditID)
	w.Header().Set(headerRefused, f.label)
	p.config.Metrics.refuse(f)
	limit.Upload(w, r, lastUpload)
	if err := f.write(w, r); err != nil {
		p.config.Log.DebugContext(r.Context(), "writing a refusal", "error", err)
	}
}

// statusClientClosed is the status under which a request is logged whose client
// went away before there was an answer.
const statusClientClosed = 499

// buffers are reused between responses.
var buffers = &bufferPool{pool: sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}}

type bufferPool struct{ pool sync.Pool }

func (b *bufferPool) Get() []byte  { return *b.pool.Get().(*[]byte) } //nolint:forcetypeassert // only Put and New fill the pool
func (b *bufferPool) Put(p []byte) { b.pool.Put(&p) }

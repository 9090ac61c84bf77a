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
	"net/http/httptrace"
	"net/netip"
	"strings"
	"sync/atomic"

	"tailscale.com/sessionrecording"

	"github.com/tailhelm/tailhelm/internal/recording"
)

// What became of the recording of a session.
const (
	// recordedWhole means that the recorder has confirmed all of it.
	recordedWhole = "complete"
	// recordedPartly means that the recorder was lost on the way, or that nobody knows what
	// became of the session.
	recordedPartly = "incomplete"
	// recordedRefused means that the recorder has who asked for what, and the API server
	// answered that there is no session.
	recordedRefused = "refused"
	// recordedNot means that no recorder took it, and none had to.
	recordedNot = "none"
)

// errUnanswered is why the recording of a session is not whole of which nobody knows
// whether it began.
var errUnanswered = errors.New("the session was asked for, and no answer of the API server came through")

// What became of the event of a request.
const (
	eventSent = "sent"
	eventLost = "lost"
)

// sessionRecording is the recording of a call.
type sessionRecording struct {
	// to is nil when no recorder was reached.
	to *recording.Recording
	// sent says that the API server may have got something of the request.
	sent atomic.Bool
	// began says that the API server has begun the session.
	began bool
	// answer is the API server's status if it has begun none.
	answer int
	// result and err say what became of it, at the end.
	result string
	err    error
}

// isSession reports whether c asks for a session in a container.
func (c *call) isSession() bool {
	return c.info.IsResourceRequest && c.info.Resource == "pods" && (c.info.Subresource == "exec" || c.info.Subresource == "attach")
}

// checkRecording refuses sessions that the tailnet policy allows only when they are
// recorded and that cannot be, and what leads to such sessions by another way.
func checkRecording(c *call, r *http.Request) *refusal {
	if !c.caller.MustRecord && len(c.caller.Recorders) == 0 {
		return nil
	}
	if c.caller.MustRecord && c.caller.Events && len(c.caller.Recorders) == 0 {
		return refuseForbidden(reasonNoRecorder, "The tailnet policy demands that this request is recorded (enforceRecorder, enableEvents), and there is no recorder with the tag that it names. Ask an administrator of the tailnet.", nil)
	}
	if c.caller.MustRecord && c.info.IsResourceRequest && c.info.Resource == "nodes" && c.info.Subresource == "proxy" {
		return refuseForbidden(reasonUnrecordable, "The tailnet policy demands that your sessions are recorded (enforceRecorder), and what goes to a node itself (nodes/proxy) cannot be recorded. Use kubectl exec, attach and logs.", nil)
	}
	if !c.isSession() {
		return checkInnerToken(c, r)
	}
	if len(c.caller.Recorders) == 0 {
		return refuseForbidden(reasonNoRecorder, "The tailnet policy demands that this session is recorded (enforceRecorder), and there is no recorder with the tag that it names. Ask an administrator of the tailnet.", nil)
	}
	// What no client but an odd one does is no way around a recorder, enforced or not. The
	// API server begins no session without an upgrade.
	if !isUpgrade(r) {
		if c.caller.MustRecord {
			return refuseUnrecordable(errors.New("it asks for no upgrade of the connection"))
		}
		return nil
	}
	// A token among the subprotocols is for the API server, which takes it out.
	if err := recording.Check(r.Header.Get("Upgrade"), withoutBearers(r.Header[headerSubprotocol])); err != nil {
		return refuseUnrecordable(err)
	}
	return nil
}

// checkInnerToken refuses an upgrade that is no session and has two tokens, to a caller
// who must be recorded. The API server takes one for itself, and sends the other on to
// what is behind a proxy subresource. There it would begin a session if that were the API
// server again, or a kubelet.
func checkInnerToken(c *call, r *http.Request) *refusal {
	offered := r.Header[headerSubprotocol]
	if !c.caller.MustRecord || !isUpgrade(r) || len(r.Header["Authorization"]) == 0 || len(withoutBearers(offered)) == len(subprotocolsOf(offered)) {
		return nil
	}
	return refuseForbidden(reasonUnrecordable, "The tailnet policy demands that your sessions are recorded (enforceRecorder), and this request has a token for a server behind the API server, where nothing is recorded (the WebSocket subprotocol "+bearerSubprotocol+"). Leave it out, or leave out the header Authorization.", nil)
}

func refuseUnrecordable(cause error) *refusal {
	return &refusal{
		label: reasonUnrecordable, code: http.StatusBadRequest, reason: "BadRequest", cause: cause,
		message: fmt.Sprintf("The tailnet policy wants this session recorded, and it cannot be: %v.", cause),
	}
}

// recordEvent sends a recorder the event of a request whose caller's grants ask for
// that: before it is forwarded if it must be recorded, beside it otherwise. Its error is a
// refusal, or ctx's.
func (p *Proxy) recordEvent(ctx context.Context, c *call, r *http.Request) error {
	if !c.caller.Events || len(c.caller.Recorders) == 0 {
		return nil
	}
	e := p.eventOf(c, r)
	if !c.caller.MustRecord {
		p.recorders.OfferEvent(c.caller.Recorders, e, func(err error) { p.countEvent(context.WithoutCancel(ctx), c, err) })
		return nil
	}
	err := p.recorders.SendEvent(ctx, c.caller.Recorders, e, true)
	p.countEvent(ctx, c, err)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return refuseUnreported(err, c.caller.Recorders)
}

// refuseUnreported refuses a request whose event no recorder has, for the reason err.
func refuseUnreported(err error, recorders []netip.AddrPort) *refusal {
	if errors.Is(err, recording.ErrEventsBehind) {
		f := refuseTooMany("The tailnet policy demands that your requests are recorded (enforceRecorder, enableEvents), and more are under way than recorders take at a time. Send fewer at a time; if that changes nothing, ask an administrator of the tailnet to look after the recorders.", err)
		f.retryAfter = 1
		return f
	}
	return refuseUnavailable(reasonRecorder, fmt.Sprintf("The tailnet policy demands that this request is recorded (enforceRecorder, enableEvents), and no recorder takes it (tried %s). Try again; if it lasts, ask an administrator of the tailnet to look after the recorders.", recording.List(recorders)), err)
}

// countEvent counts an event, and warns of it if it was lost.
func (p *Proxy) countEvent(ctx context.Context, c *call, err error) {
	if err == nil {
		p.config.Metrics.events.WithLabelValues(eventSent).Inc()
		return
	}
	p.config.Metrics.events.WithLabelValues(eventLost).Inc()
	if count := p.eventsLost.Occurred(); count > 0 {
		p.config.Log.WarnContext(ctx, "events of requests are lost", "count", count, "user", c.caller.User, "error", clipError(err))
	}
}

// eventOf describes r without its body, which may hold secrets.
func (p *Proxy) eventOf(c *call, r *http.Request) sessionrecording.Event {
	e := sessionrecording.Event{
		Type: sessionrecording.KubernetesAPIEventType, Timestamp: c.start.Unix(), UserAgent: r.UserAgent(),
		Request: sessionrecording.Request{Method: r.Method, Path: r.URL.RequestURI(), QueryParameters: r.URL.Query()},
		Kubernetes: sessionrecording.KubernetesRequestInfo{
			IsResourceRequest: c.info.IsResourceRequest, Path: c.info.Path, Verb: c.info.Verb, APIPrefix: c.info.APIPrefix, APIGroup: c.info.APIGroup,
			APIVersion: c.info.APIVersion, Namespace: c.info.Namespace, Resource: c.info.Resource, Subresource: c.info.Subresource, Name: c.info.Name,
			Parts: c.info.Parts, FieldSelector: c.info.FieldSelector, LabelSelector: c.info.LabelSelector,
		},
		Source:      sessionrecording.Source{Node: c.caller.Node, NodeID: c.caller.NodeID},
		Destination: sessionrecording.Destination{Node: p.config.Name()},
	}
	if c.caller.Tagged {
		e.Source.NodeTags = c.caller.Tags
	} else {
		e.Source.NodeUser, e.Source.NodeUserID = c.caller.User, c.caller.UserID
	}
	return e
}

// startRecording has a recorder record a session that is to be recorded, before anything
// of it is forwarded. Its error is a refusal, or ctx's.
func (p *Proxy) startRecording(ctx context.Context, c *call, r *http.Request) error {
	if !c.toRecord {
		return nil
	}
	to, err := p.recorders.Connect(ctx, c.caller.Recorders, sessionOf(c, r), c.caller.MustRecord)
	var long *recording.HeaderTooLongError
	switch {
	case err == nil:
	case ctx.Err() != nil: // ended from outside, or the client has gone
		return ctx.Err()
	case errors.As(err, &long): // no way around a recorder, enforced or not
		return refuseUnrecordable(err)
	case c.caller.MustRecord:
		return refuseUnavailable(reasonRecorder, fmt.Sprintf("The tailnet policy demands that this session is recorded (enforceRecorder), and no recorder takes it (tried %s). Try again; if it lasts, ask an administrator of the tailnet to look after the recorders.", recording.List(c.caller.Recorders)), err)
	default:
		p.config.Log.WarnContext(ctx, "the session goes on without a recording", "user", c.caller.User, "error", clipError(err))
	}
	c.recording = &sessionRecording{to: to, result: recordedNot, err: err}
	c.recorded.Store(to != nil)
	return nil
}

// traced returns ctx with a note of when the API server may have got something of c.
func (c *call) traced(ctx context.Context) context.Context {
	rec := c.recording
	if rec == nil {
		return ctx
	}
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { rec.sent.Store(true) }})
}

// tap records what passes between the API server's end of a session and the client.
func (p *Proxy) tap(c *call, conn io.ReadWriteCloser, answer *http.Response) (io.ReadWriteCloser, error) {
	rec := c.recording
	if rec == nil || rec.to == nil {
		return conn, nil
	}
	rec.began = true
	ctx := answer.Request.Context()
	tapped, err := rec.to.Tap(conn, answer.Header, func(err error) {
		p.config.Log.WarnContext(ctx, "the recording of a session is lost", "user", c.caller.User, "recorder", rec.to.Recorder().String(), "enforced", c.caller.MustRecord, "error", clipError(err))
	})
	switch {
	case err == nil:
		return tapped, nil
	case c.caller.MustRecord:
		return nil, refuseUnavailable(reasonRecorder, "The tailnet policy demands that this session is recorded (enforceRecorder), and the recording was lost as it began. Try again.", err)
	}
	rec.err = err
	p.config.Log.WarnContext(ctx, "the session goes on without a recording", "user", c.caller.User, "error", clipError(err))
	return conn, nil
}

// sessionOf describes the session that r begins.
func sessionOf(c *call, r *http.Request) recording.Session {
	query := r.URL.Query()
	h := sessionrecording.CastHeader{
		SrcNode: c.caller.Node, SrcNodeID: c.caller.NodeID, Command: strings.Join(query["command"], " "),
		Kubernetes: &sessionrecording.Kubernetes{
			PodName: c.info.Name, Namespace: c.info.Namespace, Container: query.Get("container"), SessionType: c.info.Subresource,
		},
	}
	if c.caller.Tagged {
		h.SrcNodeTags = c.caller.Tags
	} else {
		h.SrcNodeUser, h.SrcNodeUserID = c.caller.User, c.caller.UserID
	}
	return recording.Session{Header: h, TTY: isTrue(query["tty"])}
}

// finishRecording waits until the recorder has everything, and notes what became of the
// recording.
func (p *Proxy) finishRecording(c *call) {
	rec := c.recording
	if rec == nil || rec.to == nil && c.refused != nil {
		return
	}
	if rec.to != nil {
		rec.result = rec.finish()
	}
	p.config.Metrics.recordings.WithLabelValues(rec.result).Inc()
}

// finish ends the recording, and returns what became of it.
func (s *sessionRecording) finish() string {
	result := recordedRefused
	switch {
	case s.began:
		result = recordedWhole
	case s.answer != 0:
		s.to.Note(fmt.Sprintf("The API server began no session. It answered %d %s.", s.answer, http.StatusText(s.answer)))
	case !s.sent.Load():
		s.to.Note("The request was not sent to the API server.")
	default:
		s.err = s.to.BreakOff(errUnanswered)
	}
	if err := s.to.Finish(); s.err == nil {
		s.err = err
	}
	if s.err != nil {
		return recordedPartly
	}
	return result
}

// log returns what the request's line says of the recording.
func (s *sessionRecording) log() []slog.Attr {
	attrs := []slog.Attr{slog.String("recording", s.result)}
	if s.to != nil {
		attrs = append(attrs, slog.String("recorder", s.to.Recorder().String()))
	}
	if s.err != nil {
		attrs = append(attrs, slog.String("recordingError", clipError(s.err)))
	}
	return attrs
}

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
	"strings"

	"tailscale.com/sessionrecording"

	"github.com/tailhelm/tailhelm/internal/recording"
)

// What became of the recording of a session.
const (
	// recordedWhole means that the recorder has confirmed all of it.
	recordedWhole = "complete"
	// recordedPartly means that the recorder was lost on the way.
	recordedPartly = "incomplete"
	// recordedNot means that no recorder took it, and none had to.
	recordedNot = "none"
)

// What became of the event of a request.
const (
	eventSent = "sent"
	eventLost = "lost"
)

// sessionRecording is the recording of a call.
type sessionRecording struct {
	// to is nil when no recorder was reached.
	to *recording.Recording
	// began says that the API server has begun the session.
	began bool
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
		return nil
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
	if err := recording.Check(r.Header); err != nil {
		return refuseUnrecordable(err)
	}
	return nil
}

func refuseUnrecordable(cause error) *refusal {
	return &refusal{
		label: reasonUnrecordable, code: http.StatusBadRequest, reason: "BadRequest", cause: cause,
		message: fmt.Sprintf("The tailnet policy wants this session recorded, and it cannot be: %v. Use kubectl exec or attach.", cause),
	}
}

// recordEvent sends a recorder the event of a request whose caller's grants ask for
// that: before it is forwarded if it must be recorded, beside it otherwise.
func (p *Proxy) recordEvent(ctx context.Context, c *call, r *http.Request) *refusal {
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
		return refuseEnded(ctx)
	}
	return refuseUnavailable(reasonRecorder, fmt.Sprintf("The tailnet policy demands that this request is recorded (enforceRecorder, enableEvents), and no recorder takes it (tried %s). Try again; if it lasts, ask an administrator of the tailnet to look after the recorders.", recording.List(c.caller.Recorders)), err)
}

// countEvent counts an event, and logs what became of it if it was lost.
func (p *Proxy) countEvent(ctx context.Context, c *call, err error) {
	if err == nil {
		p.config.Metrics.events.WithLabelValues(eventSent).Inc()
		return
	}
	p.config.Metrics.events.WithLabelValues(eventLost).Inc()
	p.config.Log.DebugContext(ctx, "an event is lost", "user", c.caller.User, "error", err)
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

// refuseEnded tells why a call was ended before it was forwarded.
func refuseEnded(ctx context.Context) *refusal {
	var f *refusal
	if errors.As(context.Cause(ctx), &f) {
		return f
	}
	return refuseUnavailable(reasonDraining, "The request was ended before it was forwarded. Try again.", context.Cause(ctx))
}

// startRecording connects a recorder to a session that is to be recorded, before
// anything of it is forwarded.
func (p *Proxy) startRecording(ctx context.Context, c *call, r *http.Request) *refusal {
	if len(c.caller.Recorders) == 0 || !c.isSession() || !isUpgrade(r) {
		return nil
	}
	c.recording = &sessionRecording{result: recordedNot}
	to, err := p.recorders.Connect(ctx, c.caller.Recorders, c.caller.MustRecord)
	switch {
	case err == nil:
		c.recording.to = to
	case ctx.Err() != nil: // ended from outside, or the client has gone
		return refuseEnded(ctx)
	case c.caller.MustRecord:
		return refuseUnavailable(reasonRecorder, fmt.Sprintf("The tailnet policy demands that this session is recorded (enforceRecorder), and no recorder takes it (tried %s). Try again; if it lasts, ask an administrator of the tailnet to look after the recorders.", recording.List(c.caller.Recorders)), err)
	default:
		c.recording.err = err
		p.config.Log.WarnContext(ctx, "the session goes on without a recording", "user", c.caller.User, "error", err)
	}
	return nil
}

// tap records what passes between the API server's end of a session and the client.
func (p *Proxy) tap(c *call, conn io.ReadWriteCloser, answer *http.Response) (io.ReadWriteCloser, error) {
	rec := c.recording
	if rec == nil || rec.to == nil {
		return conn, nil
	}
	rec.began = true
	ctx := answer.Request.Context()
	tapped, err := rec.to.Tap(conn, answer.Header, sessionOf(c, answer.Request), func(err error) {
		p.config.Log.WarnContext(ctx, "the recording of a session is lost", "user", c.caller.User, "recorder", rec.to.Recorder().String(), "enforced", c.caller.MustRecord, "error", err)
	})
	switch {
	case err == nil:
		return tapped, nil
	case c.caller.MustRecord:
		return nil, refuseUnavailable(reasonRecorder, "The tailnet policy demands that this session is recorded (enforceRecorder), and the recorder was lost as it began. Try again.", err)
	}
	rec.err = err
	p.config.Log.WarnContext(ctx, "the session goes on without a recording", "user", c.caller.User, "error", err)
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
	if rec == nil {
		return
	}
	if rec.to != nil {
		if err := rec.to.Finish(); rec.err == nil {
			rec.err = err
		}
		switch {
		case !rec.began:
			return // the API server refused the session: there was nothing to record
		case rec.err == nil:
			rec.result = recordedWhole
		default:
			rec.result = recordedPartly
		}
	} else if c.refused != nil {
		return
	}
	p.config.Metrics.recordings.WithLabelValues(rec.result).Inc()
}

// log returns what the request's line says of the recording.
func (s *sessionRecording) log() []slog.Attr {
	attrs := []slog.Attr{slog.String("recording", s.result)}
	if s.to != nil {
		attrs = append(attrs, slog.String("recorder", s.to.Recorder().String()))
	}
	if s.err != nil && !errors.Is(s.err, recording.ErrUnused) {
		attrs = append(attrs, slog.String("recordingError", s.err.Error()))
	}
	return attrs
}

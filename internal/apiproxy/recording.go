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
		var f *refusal
		if errors.As(context.Cause(ctx), &f) {
			return f
		}
		return refuseUnavailable(reasonDraining, "The session was ended before it began. Try again.", context.Cause(ctx))
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

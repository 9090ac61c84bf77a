// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tailhelm/tailhelm/internal/identity"
	"github.com/tailhelm/tailhelm/internal/limit"
)

const (
	// bufferSize is how much of a recording is read at a time.
	bufferSize = 64 << 10
	// headerTimeout is how long the first line of a recording may take. Senders have it when
	// they begin.
	headerTimeout = 30 * time.Second
	// lastUpload is how long a sender that is refused may take to send what it has announced.
	// net/http reads a part of it to use the connection again.
	lastUpload = 3 * time.Second
)

// Peers knows who is at the addresses of the tailnet.
type Peers interface {
	// Identify returns who is at addr.
	Identify(ctx context.Context, addr netip.Addr) (identity.Identity, error)
}

// HandlerConfig is what a [Handler] is made of.
type HandlerConfig struct {
	// Store keeps the recordings.
	Store *Store
	// Peers identifies senders.
	Peers Peers
	// Tags are those of devices that may send recordings: one of them is enough.
	Tags []string
	// Log gets a line for each recording.
	Log *slog.Logger
	// Metrics registers the handler's metrics.
	Metrics prometheus.Registerer
}

// Handler receives recordings.
type Handler struct {
	config     HandlerConfig
	mux        *http.ServeMux
	recordings *prometheus.CounterVec
	bytes      prometheus.Counter
	events     *limit.Slots
	turnedAway limit.Warning

	headerTimeout, eventTimeout, lastUpload time.Duration
}

// Results of recordings, in metrics.
const (
	resultComplete   = "complete"
	resultIncomplete = "incomplete"
	resultRefused    = "refused"
)

// NewHandler returns a Handler. It panics when its metrics are registered already.
func NewHandler(config HandlerConfig) *Handler {
	const namespace, subsystem = "tailhelm", "recorder"
	h := &Handler{
		config: config, mux: http.NewServeMux(), events: limit.NewSlots(maxEvents, maxEventsPerDevice),
		headerTimeout: headerTimeout, eventTimeout: eventTimeout, lastUpload: lastUpload,
		recordings: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "recordings_total",
			Help: "Recordings that have ended: complete, incomplete (broken off, or too large), refused (by whom they were sent, or for lack of room).",
		}, []string{"result"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "received_bytes_total", Help: "Bytes of recordings that were written to the disk.",
		}),
	}
	for _, result := range []string{resultComplete, resultIncomplete, resultRefused} {
		h.recordings.WithLabelValues(result) // so that they exist at 0
	}
	config.Metrics.MustRegister(h.recordings, h.bytes)
	config.Metrics.MustRegister(config.Store.metrics()...)
	h.mux.HandleFunc("HEAD /v2/record", func(http.ResponseWriter, *http.Request) {})
	h.mux.HandleFunc("POST /v2/record", h.record)
	h.mux.HandleFunc("POST /record", h.record)
	h.mux.HandleFunc("HEAD /v2/event", func(http.ResponseWriter, *http.Request) {})
	h.mux.HandleFunc("POST /v2/event", h.event)
	return h
}

// ServeHTTP takes a recording, or refuses it.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	sender, err := h.identify(r)
	if err != nil {
		code := http.StatusServiceUnavailable // who that is may be known later
		if errors.Is(err, errNotAllowed) || errors.Is(err, identity.ErrUnknownPeer) || errors.Is(err, identity.ErrExpired) || errors.Is(err, identity.ErrNoName) {
			code = http.StatusForbidden
		}
		h.turnAway(w, r, sender, code, err)
		return
	}
	h.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), senderKey{}, sender)))
}

type senderKey struct{}

// errNotAllowed is why a device that is known may not send recordings.
var errNotAllowed = errors.New("it could not send recordings here")

// identify returns the device that sends r, if it may.
func (h *Handler) identify(r *http.Request) (string, error) {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return "", fmt.Errorf("the connection's address %q: %w", r.RemoteAddr, err)
	}
	id, err := h.config.Peers.Identify(r.Context(), peer.Addr().Unmap().WithZone(""))
	if err != nil {
		return "", err
	}
	if !id.Tagged || !slices.ContainsFunc(id.Tags, func(tag string) bool { return slices.Contains(h.config.Tags, tag) }) {
		return id.Node, fmt.Errorf("the device %s has none of the tags %q, without which %w", id.Node, h.config.Tags, errNotAllowed)
	}
	return id.Node, nil
}

// turnAway refuses a device that may not send anything here, or of which nobody knows whether
// it may. It can be any device that the tailnet lets through, so its lines of the log are few.
func (h *Handler) turnAway(w http.ResponseWriter, r *http.Request, sender string, code int, why error) {
	if strings.HasSuffix(r.URL.Path, "/record") && r.Method == http.MethodPost {
		h.recordings.WithLabelValues(resultRefused).Inc()
	}
	if count := h.turnedAway.Occurred(); count > 0 {
		h.config.Log.WarnContext(r.Context(), "refused a device", "count", count, "sender", sender, "address", r.RemoteAddr, "error", why)
	}
	h.fail(w, r, code, why)
}

// refuse refuses what a device sends that may send recordings.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, sender string, code int, why error) {
	log := h.config.Log.With("sender", sender, "address", r.RemoteAddr, "error", why)
	if strings.HasSuffix(r.URL.Path, "/record") {
		h.recordings.WithLabelValues(resultRefused).Inc()
		log.WarnContext(r.Context(), "refused a recording")
	} else {
		log.WarnContext(r.Context(), "refused an event")
	}
	h.fail(w, r, code, why)
}

// fail answers a sender with an error, and does not wait long for what it still sends.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, code int, why error) {
	limit.Upload(w, r, h.lastUpload)
	http.Error(w, why.Error(), code)
}

// record takes a recording in either version of the protocol. The older one tells
// nothing before its end.
func (h *Handler) record(w http.ResponseWriter, r *http.Request) {
	sender, _ := r.Context().Value(senderKey{}).(string)
	f, err := h.config.Store.create(sender)
	if err != nil {
		h.refuse(w, r, sender, statusOf(err), err)
		return
	}
	acked := r.URL.Path == "/v2/record"
	a := &acks{w: w, f: f, wake: make(chan struct{}, 1)}
	if acked {
		a.start(ackInterval)
	}
	err = h.receive(w, r, a)
	if acked {
		err = errors.Join(err, a.stop())
	}
	isWhole := err == nil && f.checked
	if err == nil && !f.checked && f.written() > 0 {
		err = fmt.Errorf("%w: it ends in its first line", ErrMalformed)
	}
	if ended := f.end(isWhole); ended != nil {
		isWhole, err = false, errors.Join(err, ended)
	}
	h.finish(r, sender, f, isWhole, err)
	switch {
	case err == nil && acked:
		a.send(ack{Ack: f.written()})
	case acked:
		a.send(ack{Ack: a.synced, Error: err.Error()})
	case err != nil:
		h.fail(w, r, statusOf(err), err)
	}
}

// receive copies a recording to its file. One that does not begin is broken off: it would
// take the place of another.
func (h *Handler) receive(w http.ResponseWriter, r *http.Request, a *acks) error {
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(h.headerTimeout)); err != nil {
		return fmt.Errorf("bounding the time of the first line: %w", err)
	}
	waits := true
	err := receive(a.f, r.Body, func(n int) error {
		h.bytes.Add(float64(n))
		if waits && a.f.checked {
			waits = false
			if err := control.SetReadDeadline(time.Time{}); err != nil {
				return fmt.Errorf("giving the session its time: %w", err)
			}
		}
		return a.written()
	})
	if waits && errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: its first line has not come in %s", ErrSlow, h.headerTimeout)
	}
	return err
}

// statusOf returns the status that says why something was not taken.
func statusOf(err error) int {
	switch {
	case errors.Is(err, ErrFull), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return http.StatusInsufficientStorage
	case errors.Is(err, ErrTooMany):
		return http.StatusServiceUnavailable
	case errors.Is(err, ErrTooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, ErrMalformed):
		return http.StatusBadRequest
	case errors.Is(err, ErrSlow):
		return http.StatusRequestTimeout
	}
	return http.StatusInternalServerError
}

// finish logs and counts a recording that has ended.
func (h *Handler) finish(r *http.Request, sender string, f *file, isWhole bool, err error) {
	if f.written() == 0 && !errors.Is(err, ErrFull) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrSlow) {
		return // the session never began
	}
	result, level, path := resultComplete, slog.LevelInfo, f.path+whole
	if !isWhole {
		result, level, path = resultIncomplete, slog.LevelWarn, f.path+part
	}
	h.recordings.WithLabelValues(result).Inc()
	attrs := []slog.Attr{slog.String("sender", sender), slog.String("file", path), slog.Int64("bytes", f.written()), slog.String("result", result)}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	h.config.Log.LogAttrs(r.Context(), level, "recording", attrs...)
}

// receive copies a recording to its file, and tells how much was written.
func receive(f io.Writer, body io.Reader, written func(int) error) error {
	b := make([]byte, bufferSize)
	for {
		n, err := body.Read(b)
		if n > 0 {
			if _, err := f.Write(b[:n]); err != nil {
				return err
			}
			if err := written(n); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the sender has broken off: %w", err)
		}
	}
}

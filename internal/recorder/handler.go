// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tailhelm/tailhelm/internal/identity"
)

const (
	// ackInterval is how often a sender hears of the recorder though it sends nothing.
	// Senders give up after 30 seconds.
	ackInterval = 10 * time.Second
	// bufferSize is how much of a recording is read at a time.
	bufferSize = 64 << 10
	// maxEvent bounds an event. Other proxies put the bodies of requests into theirs.
	maxEvent = 4 << 20
	// headerTimeout is how long the first line of a recording may take. Senders have it when
	// they begin.
	headerTimeout = 30 * time.Second
	// eventTimeout is how long an event may wait for others, and how long it may take to come.
	// Senders do not wait longer.
	eventTimeout = 10 * time.Second
	// maxEvents and maxEventsPerDevice bound the events that are held at a time.
	maxEvents          = 64
	maxEventsPerDevice = 8
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
	events     *slots

	headerTimeout, eventTimeout time.Duration
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
		config: config, mux: http.NewServeMux(), events: newSlots(maxEvents, maxEventsPerDevice),
		headerTimeout: headerTimeout, eventTimeout: eventTimeout,
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
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Subsystem: subsystem, Name: name, Help: help}, value)
	}
	deleted := func(reason string, count *atomic.Int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "deleted_total", ConstLabels: prometheus.Labels{"reason": reason},
			Help: "Files with recordings or events that were deleted: for their age, or for space.",
		}, func() float64 { return float64(count.Load()) })
	}
	config.Metrics.MustRegister(h.recordings, h.bytes, deleted(reasonAge, &config.Store.aged), deleted(reasonSpace, &config.Store.crowded),
		gauge("recordings_open", "Recordings that are being made.", func() float64 { open, _ := config.Store.usage(); return float64(open) }),
		gauge("stored_bytes", "Bytes that all recordings and events take on the disk.", func() float64 { _, used := config.Store.usage(); return float64(used) }),
		gauge("clock_skew_seconds", "How far the clock was set since the start. Beyond an hour no recording counts as old.", func() float64 { return config.Store.skew().Seconds() }),
		gauge("free_bytes", "Bytes that are free on the file system of the recordings; 0 when it has no room for more files.", func() float64 {
			free, _ := config.Store.free(config.Store.dir) // 0 is an alarm, too
			return float64(free)
		}))
	h.mux.HandleFunc("HEAD /v2/record", func(http.ResponseWriter, *http.Request) {})
	h.mux.HandleFunc("POST /v2/record", h.record)
	h.mux.HandleFunc("POST /record", h.record)
	h.mux.HandleFunc("HEAD /v2/event", func(http.ResponseWriter, *http.Request) {})
	h.mux.HandleFunc("POST /v2/event", h.event)
	return h
}

// NewServer returns the HTTP server for a recorder: HTTP/1.1, and HTTP/2 without TLS, as
// WireGuard encrypts.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: h, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 3 * time.Minute, MaxHeaderBytes: 16 << 10,
		// A sender that is gone without a word has its recordings broken off.
		HTTP2:    &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// ServeHTTP takes a recording, or refuses it.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	sender, err := h.identify(r)
	if err != nil {
		h.refuse(w, r, sender, http.StatusForbidden, err)
		return
	}
	h.mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), senderKey{}, sender)))
}

type senderKey struct{}

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
		return id.Node, fmt.Errorf("the device %s has none of the tags %q, with which it could send recordings here", id.Node, h.config.Tags)
	}
	return id.Node, nil
}

func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, sender string, code int, why error) {
	if r.Method == http.MethodPost {
		h.recordings.WithLabelValues(resultRefused).Inc()
	}
	h.config.Log.WarnContext(r.Context(), "refused a recording", "sender", sender, "address", r.RemoteAddr, "error", why)
	http.Error(w, why.Error(), code)
}

// record takes a recording in either version of the protocol. The older one tells
// nothing before its end.
func (h *Handler) record(w http.ResponseWriter, r *http.Request) {
	sender, _ := r.Context().Value(senderKey{}).(string)
	f, err := h.config.Store.create(sender)
	if err != nil {
		code := http.StatusInsufficientStorage
		if errors.Is(err, ErrTooMany) {
			code = http.StatusServiceUnavailable
		}
		h.refuse(w, r, sender, code, err)
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
		http.Error(w, err.Error(), statusOf(err))
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

// readEvent reads an event's body, in bounded time.
func (h *Handler) readEvent(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(h.eventTimeout)); err != nil {
		return nil, fmt.Errorf("bounding the time of an event: %w", err)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxEvent))
	if err != nil {
		return nil, err
	}
	return body, control.SetReadDeadline(time.Time{})
}

// event keeps an event, and answers when it is on the disk.
func (h *Handler) event(w http.ResponseWriter, r *http.Request) {
	sender, _ := r.Context().Value(senderKey{}).(string)
	waiting, cancel := context.WithTimeout(r.Context(), h.eventTimeout)
	defer cancel()
	release, err := h.events.acquire(waiting, sender)
	if err != nil {
		h.refuse(w, r, sender, http.StatusServiceUnavailable, errors.New("the recorder has as many events under way as it may have"))
		return
	}
	defer release()
	body, err := h.readEvent(w, r)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		h.refuse(w, r, sender, http.StatusRequestTimeout, fmt.Errorf("%w: the event has not come in %s", ErrSlow, h.eventTimeout))
		return
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		h.refuse(w, r, sender, http.StatusRequestEntityTooLarge, fmt.Errorf("an event has %d bytes at most", maxEvent))
		return
	}
	if err != nil {
		return // the sender has gone
	}
	var line bytes.Buffer
	if err := json.Compact(&line, body); err != nil || line.Len() == 0 || line.Bytes()[0] != '{' {
		h.refuse(w, r, sender, http.StatusBadRequest, errors.New("an event is a JSON object"))
		return
	}
	if err := h.config.Store.appendEvent(sender, append(line.Bytes(), '\n')); err != nil {
		h.refuse(w, r, sender, statusOf(err), err)
		return
	}
	h.bytes.Add(float64(line.Len() + 1))
}

// statusOf returns the status with which the older version of the protocol tells why a
// recording was not taken.
func statusOf(err error) int {
	switch {
	case errors.Is(err, ErrFull):
		return http.StatusInsufficientStorage
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

// ack is a message to the sender.
type ack struct {
	// Ack is how many bytes are on the disk.
	Ack int64 `json:"ack"`
	// Error is why there will be no more.
	Error string `json:"error,omitempty"`
}

// acks syncs a recording as it grows and tells the sender how much is on the disk. What
// is written during a sync is told by the next one.
type acks struct {
	w    http.ResponseWriter
	f    *file
	wake chan struct{}

	done   sync.WaitGroup
	broken atomic.Bool // a sync has failed
	synced int64       // bytes; of the goroutine, until it has ended
	err    error       // likewise
}

// errBroken means that a sync has failed. stop tells why.
var errBroken = errors.New("the recording cannot be kept")

// start begins the answer.
func (a *acks) start(interval time.Duration) {
	a.send(ack{})
	a.done.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case _, more := <-a.wake:
				if !more {
					return
				}
				if a.err = a.sync(); a.err != nil {
					a.broken.Store(true)
					return
				}
			case <-tick.C:
			}
			a.send(ack{Ack: a.synced})
		}
	})
}

func (a *acks) sync() error {
	n := a.f.written()
	if err := a.f.Sync(); err != nil {
		return fmt.Errorf("syncing the recording: %w", err)
	}
	a.synced = n
	return nil
}

// written tells that the recording has grown.
func (a *acks) written() error {
	if a.broken.Load() {
		return errBroken
	}
	select {
	case a.wake <- struct{}{}:
	default: // a sync is due anyway
	}
	return nil
}

// stop ends the goroutine and returns why a sync has failed.
func (a *acks) stop() error {
	close(a.wake)
	a.done.Wait()
	return a.err
}

// send sends a message. A sender that has gone is noticed by reading from it.
func (a *acks) send(m ack) {
	_ = json.NewEncoder(a.w).Encode(m)
	_ = http.NewResponseController(a.w).Flush()
}

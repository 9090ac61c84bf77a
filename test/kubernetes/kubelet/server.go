// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// idleTimeout is how long a stream may be silent, as long as a real kubelet allows.
const idleTimeout = 4 * time.Hour

// handler serves what the API server asks a kubelet for.
func (k *Kubelet) handler() http.Handler {
	mux := http.NewServeMux()
	// Clients choose GET for WebSocket and POST for SPDY; the API server passes it on.
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", k.exec)
	mux.HandleFunc("/attach/{namespace}/{pod}/{container}", k.attach)
	mux.HandleFunc("/portForward/{namespace}/{pod}", k.portForward)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", k.containerLogs)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok"))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case len(r.TLS.PeerCertificates) == 0:
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
		case r.TLS.PeerCertificates[0].Subject.CommonName != k.options.ClientName:
			http.Error(w, "Forbidden", http.StatusForbidden)
		default:
			mux.ServeHTTP(w, r)
		}
	})
}

func (k *Kubelet) exec(w http.ResponseWriter, r *http.Request) {
	c, options := k.streams(w, r)
	if c == nil {
		return
	}
	remotecommand.ServeExec(w, r, c, "", "", "", r.Form["command"], options,
		idleTimeout, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (k *Kubelet) attach(w http.ResponseWriter, r *http.Request) {
	c, options := k.streams(w, r)
	if c == nil {
		return
	}
	remotecommand.ServeAttach(w, r, c, "", "", "", options,
		idleTimeout, remotecommand.DefaultStreamCreationTimeout, remotecommand.SupportedStreamingProtocols)
}

// streams is the container that the request names and the streams that it wants. It
// answers the request and returns nil if there is none.
func (k *Kubelet) streams(w http.ResponseWriter, r *http.Request) (*container, *remotecommand.Options) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return nil, nil
	}
	_, c := k.lookup(w, r)
	return c, options
}

// lookup is the pod and the container that the request names. It answers the request
// and returns nil if the pod, or the container that a request names, does not exist.
func (k *Kubelet) lookup(w http.ResponseWriter, r *http.Request) (*pod, *container) {
	p := k.find(r.PathValue("namespace"), r.PathValue("pod"))
	if p == nil {
		http.Error(w, "pod does not exist", http.StatusNotFound)
		return nil, nil
	}
	name := r.PathValue("container")
	if name == "" {
		return p, nil
	}
	c := k.container(p, name)
	if c == nil {
		http.Error(w, fmt.Sprintf("container not found (%q)", name), http.StatusNotFound)
		return nil, nil
	}
	return p, c
}

func (k *Kubelet) portForward(w http.ResponseWriter, r *http.Request) {
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p, _ := k.lookup(w, r)
	if p == nil {
		return
	}
	portforward.ServePortForward(w, r, p, "", "", options,
		idleTimeout, remotecommand.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
}

func (k *Kubelet) containerLogs(w http.ResponseWriter, r *http.Request) {
	options, err := parseLogOptions(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p, c := k.lookup(w, r)
	if c == nil {
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	flush := http.NewResponseController(w)
	flushed := writerFunc(func(b []byte) (int, error) {
		n, err := w.Write(b)
		if err == nil && options.follow {
			err = flush.Flush()
		}
		return n, err
	})
	if options.follow {
		// The client is to learn that it follows before there is anything to read.
		_ = flush.Flush()
	}
	ctx := r.Context()
	if err := c.output.copyTo(ctx, flushed, options); err != nil && ctx.Err() == nil && p.life.Err() == nil {
		k.options.Logger.Info("logs", "container", c.id, "error", err)
	}
}

// parseLogOptions reads the parameters that the API server makes of PodLogOptions.
func parseLogOptions(query url.Values) (logOptions, error) {
	options := logOptions{tail: -1, limit: -1, stream: query.Get("stream")}
	if options.stream == "All" {
		options.stream = ""
	}
	seconds := -1
	for name, set := range map[string]func(string) error{
		"follow":       boolean(&options.follow),
		"timestamps":   boolean(&options.timestamps),
		"tailLines":    number(&options.tail),
		"limitBytes":   number(&options.limit),
		"sinceSeconds": number(&seconds),
		"sinceTime": func(s string) (err error) {
			options.since, err = time.Parse(time.RFC3339, s)
			return err
		},
	} {
		if value := query.Get(name); value != "" {
			if err := set(value); err != nil {
				return options, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if seconds >= 0 {
		options.since = time.Now().Add(-time.Duration(seconds) * time.Second)
	}
	return options, nil
}

func boolean(to *bool) func(string) error {
	return func(s string) (err error) {
		*to, err = strconv.ParseBool(s)
		return err
	}
}

func number(to *int) func(string) error {
	return func(s string) (err error) {
		*to, err = strconv.Atoi(s)
		return err
	}
}

// trackedListener knows its open connections. A server forgets those that become
// streams, and Close has to close them too.
type trackedListener struct {
	net.Listener

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

func (l *trackedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tracked := &trackedConn{Conn: conn, listener: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	l.conns[tracked] = struct{}{}
	return tracked, nil
}

// closeAll closes every connection. None is accepted after that.
func (l *trackedListener) closeAll() {
	l.mu.Lock()
	l.closed = true
	conns := l.conns
	l.conns = nil
	l.mu.Unlock()
	for conn := range conns {
		_ = conn.Close()
	}
}

type trackedConn struct {
	net.Conn
	listener *trackedListener
}

func (c *trackedConn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.conns, c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

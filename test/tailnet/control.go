// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"tailscale.com/control/controlhttp/controlhttpserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// controlServer is the listener of a tailnet: control protocol and HTTP API.
// It can stop and start again on its port; what it knows is kept in between.
type controlServer struct {
	t       *Tailnet
	addr    string // host:port
	private key.MachinePrivate
	legacy  key.ControlPrivate
	outer   http.Handler // over plain HTTP
	inner   http.Handler // inside Noise

	mu     sync.Mutex
	server *http.Server // nil: stopped
	conns  map[io.Closer]bool
	done   sync.WaitGroup // Serve and the Noise connections
}

func startControl(t *Tailnet, addr string) (*controlServer, error) {
	c := &controlServer{
		t: t, addr: addr, private: key.NewMachine(), legacy: key.NewControl(),
		conns: map[io.Closer]bool{},
	}
	outer := http.NewServeMux()
	outer.HandleFunc("GET /key", c.serveKey)
	outer.HandleFunc("/ts2021", c.serveNoise)
	outer.HandleFunc("GET /generate_204", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	outer.HandleFunc("GET /a/{login}", serveLogin)
	outer.Handle("/api/v2/", t.api)
	c.outer = t.faults.wrap(outer, apiPath)

	inner := http.NewServeMux()
	inner.HandleFunc("POST /machine/register", t.serveRegister)
	inner.HandleFunc("POST /machine/map", t.serveMap)
	inner.HandleFunc("POST /machine/set-dns", t.serveSetDNS)
	inner.HandleFunc("POST /machine/update-health", serveAccepted)
	inner.HandleFunc("POST /c2n/{token}", t.serveC2NReply)
	c.inner = t.faults.wrap(inner, apiPath)
	return c, c.start()
}

func (c *controlServer) start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server != nil {
		return errors.New("the control server is running")
	}
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", c.addr)
	if err != nil {
		return err
	}
	c.addr = ln.Addr().String()
	server := &http.Server{Handler: c.outer, ReadHeaderTimeout: 10 * time.Second, ErrorLog: stdLog(c.t.opts.Logf)}
	c.server = server
	c.done.Go(func() {
		if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			c.t.opts.Logf("control server: %v", err)
		}
	})
	return nil
}

// stop closes the listener and every connection, and waits until their
// handlers have returned.
func (c *controlServer) stop() error {
	c.mu.Lock()
	server := c.server
	c.server = nil
	var errs []error
	if server != nil {
		errs = append(errs, server.Close())
	}
	for conn := range c.conns {
		// The device may have closed it in the same moment.
		if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			c.t.opts.Logf("closing a control connection: %v", err)
		}
	}
	c.mu.Unlock()
	c.done.Wait()
	return errors.Join(errs...)
}

// StopControl takes control server and HTTP API down: their port refuses
// connections and devices lose their streams. What devices know already keeps
// working.
func (t *Tailnet) StopControl() error { return t.control.stop() }

// StartControl brings them back on the same port, with everything they knew.
func (t *Tailnet) StartControl() error { return t.control.start() }

func (c *controlServer) serveKey(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("v") == "" { // a client older than the Noise protocol
		http.Error(w, "clients without the Noise protocol are not supported", http.StatusBadRequest)
		return
	}
	writeJSON(w, http.StatusOK, tailcfg.OverTLSPublicKeyResponse{
		LegacyPublicKey: c.legacy.Public(),
		PublicKey:       c.private.Public(),
	})
}

type machineKey struct{} // context key of the machine at the other end of Noise

// machineOf returns the machine key that a request inside Noise came from.
func machineOf(r *http.Request) key.MachinePublic {
	k, _ := r.Context().Value(machineKey{}).(key.MachinePublic)
	return k
}

// serveNoise upgrades to the Noise protocol and serves HTTP/2 inside.
func (c *controlServer) serveNoise(w http.ResponseWriter, r *http.Request) {
	conn, err := controlhttpserver.AcceptHTTP(r.Context(), w, r, c.private, nil)
	if err != nil {
		c.t.opts.Logf("accepting a control connection: %v", err)
		return
	}
	if !c.track(conn) {
		return
	}
	defer c.untrack(conn)
	new(http2.Server).ServeConn(conn, &http2.ServeConnOpts{
		Context:    context.WithValue(r.Context(), machineKey{}, conn.Peer()),
		BaseConfig: &http.Server{Handler: c.inner, ReadHeaderTimeout: 10 * time.Second, ErrorLog: stdLog(c.t.opts.Logf)},
	})
}

func (c *controlServer) track(conn io.Closer) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.server == nil {
		if err := conn.Close(); err != nil {
			c.t.opts.Logf("closing a control connection: %v", err)
		}
		return false
	}
	c.conns[conn] = true
	c.done.Add(1)
	return true
}

func (c *controlServer) untrack(conn io.Closer) {
	defer c.done.Done()
	c.mu.Lock()
	delete(c.conns, conn)
	c.mu.Unlock()
	if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		c.t.opts.Logf("closing a control connection: %v", err)
	}
}

// serveLogin is where an interactive login would happen.
func serveLogin(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "this tailnet has no interactive login: use an auth key", http.StatusNotFound)
}

func serveAccepted(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }

const maxBody = 1 << 20 // of any request, in bytes

// readJSON decodes a request's body, or answers 400.
func readJSON(w http.ResponseWriter, r *http.Request, into any) bool {
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(into)
	if err != nil {
		http.Error(w, fmt.Sprintf("reading %s: %v", r.URL.Path, err), http.StatusBadRequest)
	}
	return err == nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client may be gone
}

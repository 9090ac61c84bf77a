// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"tailscale.com/control/controlbase"
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
	legacy  key.MachinePublic
	handler http.Handler // over plain HTTP
	inner   http.Handler // HTTP/2 inside Noise

	mu       sync.Mutex
	running  *controlRun    // nil: stopped
	requests sync.WaitGroup // inside Noise; none begins while stopped
}

// controlRun is what lives from a start to a stop.
type controlRun struct {
	outer, inner *http.Server
	noise        *connListener
	done         sync.WaitGroup
}

func startControl(t *Tailnet, addr string) (*controlServer, error) {
	c := &controlServer{t: t, addr: addr, private: key.NewMachine(), legacy: key.NewMachine().Public()}
	outer := http.NewServeMux()
	outer.HandleFunc("GET /key", c.serveKey)
	outer.HandleFunc("/ts2021", c.serveNoise)
	outer.HandleFunc("GET /generate_204", serveAccepted)
	outer.HandleFunc("GET /a/{login}", serveLogin)
	outer.Handle("/api/v2/", t.api)
	c.handler = t.faults.wrap(outer, apiPath)

	inner := http.NewServeMux()
	inner.HandleFunc("POST /machine/register", t.serveRegister)
	inner.HandleFunc("POST /machine/map", t.serveMap)
	inner.HandleFunc("POST /machine/set-dns", t.serveSetDNS)
	inner.HandleFunc("POST /machine/update-health", serveAccepted)
	inner.HandleFunc("POST /c2n/{token}", t.serveC2NReply)
	c.inner = c.whileRunning(t.faults.wrap(inner, apiPath))
	return c, c.start()
}

func (c *controlServer) start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running != nil {
		return errors.New("the control server is running")
	}
	ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", c.addr)
	if err != nil {
		return err
	}
	c.addr = ln.Addr().String()
	r := &controlRun{noise: newConnListener(ln.Addr())}
	r.outer = &http.Server{Handler: c.handler, ReadHeaderTimeout: 10 * time.Second, ErrorLog: stdLog(c.t.opts.Logf)}
	r.inner = &http.Server{
		Handler: c.inner, ReadHeaderTimeout: 10 * time.Second, ErrorLog: stdLog(c.t.opts.Logf),
		Protocols: new(http.Protocols), ConnContext: withMachine,
	}
	r.inner.Protocols.SetUnencryptedHTTP2(true) // Noise encrypts
	serve := func(s *http.Server, ln net.Listener) {
		if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			c.t.opts.Logf("control server: %v", err)
		}
	}
	r.done.Go(func() { serve(r.outer, ln) })
	r.done.Go(func() { serve(r.inner, r.noise) })
	c.running = r
	return nil
}

// stop closes the listener and every connection, and waits until their
// handlers have returned.
func (c *controlServer) stop() error {
	c.mu.Lock()
	r := c.running
	c.running = nil
	c.mu.Unlock()
	if r == nil {
		return nil
	}
	err := errors.Join(r.outer.Close(), r.inner.Close())
	r.done.Wait()
	c.requests.Wait()
	return err
}

// whileRunning serves requests unless the server has stopped, and lets stop
// wait for them.
func (c *controlServer) whileRunning(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		running := c.running != nil
		if running {
			c.requests.Add(1)
		}
		c.mu.Unlock()
		if !running {
			http.Error(w, "the control server has stopped", http.StatusServiceUnavailable)
			return
		}
		defer c.requests.Done()
		h.ServeHTTP(w, r)
	})
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
		LegacyPublicKey: c.legacy,
		PublicKey:       c.private.Public(),
	})
}

type machineKey struct{} // context key of the machine at the other end of Noise

func withMachine(ctx context.Context, conn net.Conn) context.Context {
	if noise, ok := conn.(*controlbase.Conn); ok {
		return context.WithValue(ctx, machineKey{}, noise.Peer())
	}
	return ctx
}

// machineOf returns the machine key that a request inside Noise came from.
func machineOf(r *http.Request) key.MachinePublic {
	k, _ := r.Context().Value(machineKey{}).(key.MachinePublic)
	return k
}

// serveNoise upgrades to the Noise protocol and hands the connection to the
// server inside.
func (c *controlServer) serveNoise(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	running := c.running
	c.mu.Unlock()
	if running == nil {
		http.Error(w, "the control server has stopped", http.StatusServiceUnavailable)
		return
	}
	conn, err := controlhttpserver.AcceptHTTP(r.Context(), w, r, c.private, nil)
	if err != nil {
		c.t.opts.Logf("accepting a control connection: %v", err)
		return
	}
	running.noise.add(conn)
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

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"tailscale.com/tailcfg"

	"github.com/tailhelm/tailhelm/test/tailhelm"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// way is a way from a client to the API server.
type way struct {
	name string
	// url is what URLs begin with.
	url   string
	dial  func(ctx context.Context, network, addr string) (net.Conn, error)
	roots *x509.CertPool
	// token is empty where the way itself says who the client is.
	token string
	// process is in the middle, nil if there is none.
	process *tailhelm.Process
	remove  func() error // takes its device out of the tailnet
}

// directly is the way without anything in the middle.
func (s *stage) directly() *way {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.cluster.CA())
	return &way{name: "direct", url: s.cluster.URL(), dial: new(net.Dialer).DialContext, roots: roots, token: s.token}
}

// startFloor starts a passthrough. The caller calls stop.
func (s *stage) startFloor(ctx context.Context) (*way, error) {
	w, hostname := s.directly(), s.unique("floor")
	w.name = "floor"
	address := net.JoinHostPort(hostname+"."+s.tailnet.Domain(), "443")
	w.dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return s.device.Dial(ctx, network, address)
	}
	return w, s.launch(ctx, w, hostname, s.passthrough, "--to", strings.TrimPrefix(s.cluster.URL(), "https://"))
}

// startProxy starts tailhelm in mode auth. The caller calls stop.
func (s *stage) startProxy(ctx context.Context) (*way, error) {
	hostname := s.unique("kube")
	w := &way{name: "tailhelm", url: "https://" + hostname + "." + s.tailnet.Domain(), dial: s.device.Dial, roots: s.tailnet.Roots()}
	return w, s.launch(ctx, w, hostname, s.tailhelm, "proxy", "--mode", "auth", "--kubeconfig", s.kubeconfig, "--metrics-address", "127.0.0.1:0")
}

// launch starts what is in the middle of w, and waits until it is ready and packets go
// there without a relay. On an error, nothing is left.
func (s *stage) launch(ctx context.Context, w *way, hostname, program string, args ...string) (err error) {
	dir := filepath.Join(s.dir, hostname)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	command := tailhelm.Command{Path: program, Args: append(args, "--hostname", hostname, "--login-server", s.tailnet.URL(), "--state-dir", dir)}
	key := s.tailnet.AuthKey(tailnet.Identity{Tags: []string{proxyTag}})
	command.Env = append(s.tailnet.Environ(), "HOME="+dir, "PATH="+os.Getenv("PATH"), "TS_AUTHKEY="+key)
	if w.process, err = tailhelm.Start(context.WithoutCancel(ctx), command); err != nil {
		return err
	}
	w.remove = func() error { return s.tailnet.Remove(hostname) }
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if w.name == "floor" {
		_, err = w.process.WaitLog(ctx, func(line string) bool { return strings.Contains(line, `"listening"`) })
	} else {
		err = w.process.WaitReady(ctx)
	}
	if err == nil {
		err = s.waitDirect(ctx, hostname)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("starting %s: %w", w.name, err), w.stop())
	}
	return err
}

// waitDirect waits until packets from the client's device to another one need no relay.
func (s *stage) waitDirect(ctx context.Context, hostname string) error {
	var address netip.Addr
	for _, d := range s.tailnet.Devices() {
		if d.Name == hostname {
			address = d.Addrs[0]
		}
	}
	for {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		pong, err := s.device.Local().Ping(attempt, address, tailcfg.PingDisco)
		cancel()
		if err == nil && pong.Endpoint != "" {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("no direct path to %s: %w", hostname, ctx.Err()), err)
		}
	}
}

// watched returns a context that ends with what is in the middle of w, too. A device that is
// gone resets no connection: clients would wait for it.
func (w *way) watched(ctx context.Context) (context.Context, context.CancelFunc) {
	if w.process == nil {
		return context.WithCancel(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-w.process.Done():
			cancel(fmt.Errorf("what is in the middle of %s has ended", w.name))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// stop ends what is in the middle, if anything is.
func (w *way) stop() error {
	if w.process == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return errors.Join(w.process.Stop(ctx), w.remove())
}

// cpu is the CPU time that what is in the middle has taken until now, in seconds.
func (w *way) cpu() (float64, error) {
	p, err := procfs.NewProc(w.process.PID())
	if err != nil {
		return 0, err
	}
	stat, err := p.Stat()
	return stat.CPUTime(), err
}

// memory is the resident memory of what is in the middle, in KiB.
func (w *way) memory() (float64, error) {
	p, err := procfs.NewProc(w.process.PID())
	if err != nil {
		return 0, err
	}
	rollup, err := p.ProcSMapsRollup()
	return float64(rollup.Rss) / 1024, err
}

// version is a version of HTTP: 1 or 2.
type version int

// versions runs a benchmark with each version of HTTP.
func versions(b *testing.B, benchmark func(b *testing.B, v version)) {
	b.Run("http=1.1", func(b *testing.B) { benchmark(b, 1) })
	b.Run("http=2", func(b *testing.B) { benchmark(b, 2) })
}

// connection is a client of the API server with connections of its own. While it sends one
// request at a time, it has one.
type connection struct {
	*way
	version version
	http    *http.Client
}

// connect makes a client, which has asked for something.
func (w *way) connect(ctx context.Context, v version) (*connection, error) {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(v == 1)
	protocols.SetHTTP2(v == 2)
	c := &connection{way: w, version: v, http: &http.Client{Transport: &http.Transport{
		DialContext: w.dial, TLSClientConfig: &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS12}, Protocols: protocols,
		DisableCompression: true, // or the API server's gzip would be what a list costs
	}}}
	_, err := c.get(ctx, smallPath)
	return c, err
}

// close closes the connections.
func (c *connection) close() { c.http.CloseIdleConnections() }

// open sends a get. The caller closes the answer's body.
func (c *connection) open(ctx context.Context, path string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+path, nil)
	if err != nil {
		return nil, err
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	if res.StatusCode != http.StatusOK || res.ProtoMajor != int(c.version) {
		body, err := io.ReadAll(res.Body)
		return nil, errors.Join(fmt.Errorf("%s: %s %s over %s: %s", c.name, path, res.Status, res.Proto, body), err, res.Body.Close())
	}
	return res, nil
}

// get sends a get and reads the answer to its end. It returns its length.
func (c *connection) get(ctx context.Context, path string) (int64, error) {
	res, err := c.open(ctx, path)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, res.Body)
	if err = cmp.Or(err, res.Body.Close()); err != nil {
		return n, fmt.Errorf("%s: the answer to %s ended after %d bytes: %w", c.name, path, n, err)
	}
	return n, nil
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
)

// The tests of this file are about time. They run with a clock of their own, which
// stands still while anything runs, and with connections in memory.

// memoryListener accepts connections that dial makes.
type memoryListener struct {
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

func newMemoryListener() *memoryListener {
	l := &memoryListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	l.close = sync.OnceFunc(func() { close(l.closed) })
	return l
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error {
	l.close()
	return nil
}

func (l *memoryListener) Addr() net.Addr { return &net.TCPAddr{} }

// dial connects as the peer at addr.
func (l *memoryListener) dial(addr netip.Addr) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- &memoryConn{server, net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 1))}:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// memoryConn has the address of a peer.
type memoryConn struct {
	net.Conn
	peer net.Addr
}

func (c *memoryConn) RemoteAddr() net.Addr { return c.peer }

// memoryRig is a Proxy and Server in memory, in plain HTTP.
type memoryRig struct {
	proxy  *memoryListener
	peers  *fakePeers
	logs   *logBuffer
	stop   context.CancelFunc
	served chan error
}

// startInMemory starts a proxy in mode noauth in front of an API server with handler.
// Both end with the test.
func startInMemory(t *testing.T, handler http.HandlerFunc, drainTimeout time.Duration) *memoryRig {
	t.Helper()
	return startInMemoryAs(t, ModeNoAuth, handler, drainTimeout)
}

// startInMemoryAs is startInMemory in any mode. "" is noauth.
func startInMemoryAs(t *testing.T, mode Mode, handler http.HandlerFunc, drainTimeout time.Duration) *memoryRig {
	t.Helper()
	r := &memoryRig{proxy: newMemoryListener(), peers: newFakePeers(alice, bob), logs: newLogBuffer(), served: make(chan error, 1)}
	log, metrics := slog.New(slog.NewJSONHandler(r.logs, nil)), NewMetrics(prometheus.NewRegistry())
	l := newMemoryListener()
	api := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = api.Serve(l) }()
	proxy, err := New(Config{
		Mode: cmp.Or(mode, ModeNoAuth), Peers: r.peers, Name: func() string { return deviceName }, Log: log, Metrics: metrics,
		Upstream: &rest.Config{
			Host:  "http://api",
			Dial:  func(context.Context, string, string) (net.Conn, error) { return l.dial(alice.Addr) },
			Proxy: func(*http.Request) (*url.URL, error) { return nil, nil }, //nolint:nilnil // no proxy
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.WithoutCancel(t.Context()))
	go func() {
		r.served <- NewServer(ServerConfig{Proxy: proxy, DrainTimeout: drainTimeout, Log: log, Metrics: metrics}).Serve(ctx, nil, r.proxy)
		close(r.served)
	}()
	t.Cleanup(func() {
		r.stop()
		for range r.served { //revive:disable-line:empty-block // until Serve has returned
		}
		_ = api.Close()
	})
	return r
}

// send connects as alice, sends text, and returns the connection.
func (r *memoryRig) send(t *testing.T, text string) net.Conn {
	t.Helper()
	conn, err := r.proxy.dial(alice.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return conn
}

// closing returns a channel that is closed when conn is, and what it sent.
func closing(conn io.Reader) (closed <-chan struct{}, sent *strings.Builder) {
	c, b := make(chan struct{}), &strings.Builder{}
	go func() {
		defer close(c)
		_, _ = io.Copy(b, conn)
	}()
	return c, b
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// A client that does not finish its header loses its connection.
func TestSlowHeaders(t *testing.T) {
	for name, text := range map[string]string{
		"nothing": "", "half a line": "GET /api", "half a header": "GET /api HTTP/1.1\r\nHost: " + deviceName + "\r\nX-Slow: ",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startInMemory(t, nil, time.Minute)
				closed, _ := closing(r.send(t, text))
				time.Sleep(readHeaderTimeout - time.Millisecond)
				synctest.Wait()
				if isClosed(closed) {
					t.Error("the connection was closed too early")
				}
				time.Sleep(time.Second) // net/http pauses before it closes
				synctest.Wait()
				if !isClosed(closed) {
					t.Error("the connection is still open")
				}
			})
		})
	}
}

// A connection without requests is closed, one with an open request is not.
func TestIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startInMemory(t, func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Has("watch") {
				<-r.Context().Done()
			}
		}, time.Minute)
		get := "GET /api/v1/pods%s HTTP/1.1\r\nHost: " + deviceName + "\r\n\r\n"
		idle, _ := closing(r.send(t, fmt.Sprintf(get, "")))
		busy, _ := closing(r.send(t, fmt.Sprintf(get, "?watch=1")))
		time.Sleep(keepAliveTimeout + time.Second)
		synctest.Wait()
		if !isClosed(idle) {
			t.Error("the idle connection is still open")
		}
		if isClosed(busy) {
			t.Error("the connection with an open request was closed")
		}
	})
}

// At the end of the drain timeout, and not before, everything ends. Nobody can connect from
// lastRequests before it.
func TestDrainTimeout(t *testing.T) {
	const timeout = time.Minute
	synctest.Test(t, func(t *testing.T) {
		r := startInMemory(t, func(w http.ResponseWriter, r *http.Request) {
			if isUpgrade(r) {
				echo(w, r)
				return
			}
			if r.URL.Query().Has("watch") {
				_ = http.NewResponseController(w).Flush()
			}
			<-r.Context().Done()
		}, timeout)
		header := " HTTP/1.1\r\nHost: " + deviceName + "\r\n"
		stream := r.send(t, "POST /api/v1/namespaces/a/pods/p/exec"+header+"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
		read := bufio.NewReader(stream)
		if res, err := http.ReadResponse(read, nil); err != nil || res.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%v, %v", res, err)
		}
		streamEnded, _ := closing(read)
		watchEnded, _ := closing(r.send(t, "GET /api/v1/pods?watch=1"+header+"\r\n"))
		restEnded, answer := closing(r.send(t, "GET /api/v1/nodes"+header+"\r\n"))
		synctest.Wait()

		r.stop()
		time.Sleep(timeout - lastRequests - time.Millisecond)
		synctest.Wait()
		last, _ := closing(r.send(t, "GET /api/v1/nodes"+header+"\r\n"))
		time.Sleep(lastRequests)
		synctest.Wait()
		if conn, err := r.proxy.dial(bob.Addr); err == nil {
			_ = conn.Close()
			t.Error("somebody can connect at the end of the timeout")
		}
		if isClosed(last) {
			t.Error("a request that was sent before that is cut off")
		}
		if _, err := io.WriteString(stream, "x"); err != nil || isClosed(streamEnded) || isClosed(watchEnded) || isClosed(restEnded) || len(r.served) > 0 {
			t.Errorf("before the timeout: stream ended %v (%v), watch ended %v, request ended %v, Serve ended %v",
				isClosed(streamEnded), err, isClosed(watchEnded), isClosed(restEnded), len(r.served) > 0)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		time.Sleep(lastWords)
		synctest.Wait()
		if !isClosed(streamEnded) || !isClosed(watchEnded) || !isClosed(restEnded) || len(r.served) == 0 {
			t.Errorf("after the timeout: stream ended %v, watch ended %v, request ended %v, Serve ended %v",
				isClosed(streamEnded), isClosed(watchEnded), isClosed(restEnded), len(r.served) > 0)
		}
		if !strings.Contains(answer.String(), "503") || !strings.Contains(answer.String(), "shutting down. Try again.") {
			t.Errorf("the request that waited is answered %q", answer)
		}
		if err := <-r.served; err != nil {
			t.Errorf("Serve returns %v", err)
		}
		ended := 0
		for _, line := range r.logs.lines(t, "request", 4) {
			if line["ended"] == reasonDraining || line["refused"] == reasonDraining {
				ended++
			}
		}
		if ended != 4 {
			t.Errorf("%d of 4 requests are logged as ended by the drain:\n%s", ended, r.logs)
		}
	})
}

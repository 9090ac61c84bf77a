// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Command passthrough is a device of a tailnet that copies the bytes of each connection to
// its port 443 to another address and back. It looks at none of them: what it costs is what
// the tailnet itself costs. See package bench.
//
// The environment has its auth key, as TS_AUTHKEY.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"tailscale.com/tsnet"
)

// listening is the line of the log that says that connections are taken.
const listening = "listening"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "passthrough:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

// run joins the tailnet and copies until ctx is done.
func run(ctx context.Context) (err error) {
	quiet := func(string, ...any) {}
	server := &tsnet.Server{Logf: quiet, UserLogf: quiet}
	flag.StringVar(&server.Hostname, "hostname", "", "`name` of the device")
	flag.StringVar(&server.ControlURL, "login-server", "", "`URL` of the control server")
	flag.StringVar(&server.Dir, "state-dir", "", "`folder` for the device's state, which exists")
	to := flag.String("to", "", "`host:port` that connections lead to")
	flag.Parse()
	defer func() { err = errors.Join(err, server.Close()) }()
	if _, err := server.Up(ctx); err != nil {
		return fmt.Errorf("joining the tailnet: %w", err)
	}
	listener, err := server.Listen("tcp", ":443")
	if err != nil {
		return fmt.Errorf("listening on the tailnet: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	slog.New(slog.NewJSONHandler(os.Stderr, nil)).InfoContext(ctx, listening)
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("taking connections: %w", err)
		}
		go pass(ctx, conn, *to)
	}
}

// pass copies between a connection and one to an address. What goes wrong shows at the
// client, as the end of its connection.
func pass(ctx context.Context, client net.Conn, to string) {
	defer func() { _ = client.Close() }()
	server, err := new(net.Dialer).DialContext(ctx, "tcp", to)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	var both sync.WaitGroup
	both.Go(func() { half(server, client) })
	both.Go(func() { half(client, server) })
	both.Wait()
}

// half copies one direction, and passes on its end.
func half(to, from net.Conn) {
	_, _ = io.Copy(to, from) // either end may go at any time
	if c, ok := to.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"time"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

// A server asks who its caller is. A test would call New instead of Start.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tn, err := tailnet.Start(ctx, tailnet.Options{NoHTTPS: true})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = tn.Close() }()

	server, err := tn.Device(ctx, "server", tailnet.Identity{Tags: []string{"tag:server"}})
	if err != nil {
		log.Fatal(err)
	}
	ln, err := server.Server().Listen("tcp", ":80")
	if err != nil {
		log.Fatal(err)
	}
	hello := func(w http.ResponseWriter, r *http.Request) {
		who, err := server.Local().WhoIs(r.Context(), r.RemoteAddr)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		_, _ = fmt.Fprintf(w, "hello, %s", who.UserProfile.LoginName)
	}
	go func() {
		_ = (&http.Server{Handler: http.HandlerFunc(hello), ReadHeaderTimeout: time.Minute}).Serve(ln)
	}()

	laptop, err := tn.Device(ctx, "laptop", tailnet.Identity{Login: "alice@example.com"})
	if err != nil {
		log.Fatal(err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://server", nil)
	if err != nil {
		log.Fatal(err)
	}
	res, err := laptop.HTTPClient().Do(req)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(body))
	// Output: hello, alice@example.com
}

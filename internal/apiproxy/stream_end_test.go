// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
)

// hungUp is a connection whose other side has sent everything and closed: writing
// fails, and reading does after what was sent.
type hungUp struct{ sent io.Reader }

func (c *hungUp) Read(p []byte) (int, error) {
	n, err := c.sent.Read(p)
	if err != nil {
		err = syscall.ECONNRESET
	}
	return n, err
}
func (*hungUp) Write([]byte) (int, error) { return 0, syscall.EPIPE }
func (*hungUp) Close() error              { return nil }

// What the API server said last reaches a client that still sends.
func TestStreamEndsAfterItsLastWords(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	s := &apiStream{ReadWriteCloser: &hungUp{strings.NewReader("last words")}, ctx: ctx}
	if n, err := io.Copy(s, strings.NewReader("an acknowledgement")); err != nil || n == 0 {
		t.Errorf("sending to an API server that has hung up ends the stream: %d, %v", n, err)
	}
	if got, err := io.ReadAll(s); string(got) != "last words" || err != nil {
		t.Errorf("the client gets %q, %v", got, err)
	}
	end()
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a stream that was ended from outside ends with %v", err)
	}
	dead := &apiStream{ReadWriteCloser: &hungUp{strings.NewReader("")}, ctx: ctx}
	if _, err := dead.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("writing to a stream that was ended from outside: %v", err)
	}
}

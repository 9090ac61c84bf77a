// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"errors"
	"io"
	"time"
)

// lingerTimeout is how long a client may take to close a stream that the API
// server has ended.
const lingerTimeout = 10 * time.Second

// apiStream is the API server's end of a stream. It lets what the API server said
// last reach the client.
//
// The API server closes a stream as soon as it has sent everything, though the
// client may still be sending: acknowledgements, pings, its own farewell. Those
// fail then, with much of the API server's data still on its way to a slower
// client. The reverse proxy would end both directions at the first error; so errors
// of one direction do not end the other, unless the call is ended from outside.
type apiStream struct {
	io.ReadWriteCloser
	ctx  context.Context //nolint:containedctx // of the call; ends it
	deaf bool            // writing has failed; one goroutine writes
}

// Read ends with io.EOF, whichever way the API server's end has ended.
func (s *apiStream) Read(p []byte) (int, error) {
	n, err := s.ReadWriteCloser.Read(p)
	if err != nil && s.ctx.Err() == nil {
		err = io.EOF
	}
	return n, err
}

// Write drops what the API server does not want any more.
func (s *apiStream) Write(p []byte) (int, error) {
	if !s.deaf {
		n, err := s.ReadWriteCloser.Write(p)
		if err == nil || s.ctx.Err() != nil {
			return n, err
		}
		s.deaf = true
	}
	return len(p), nil
}

// CloseWrite tells the API server that the client has sent everything.
func (s *apiStream) CloseWrite() error {
	half, ok := s.ReadWriteCloser.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	if !s.deaf {
		_ = half.CloseWrite() // it may have hung up; reading tells
	}
	return nil
}

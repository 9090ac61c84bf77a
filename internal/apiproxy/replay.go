// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync"
)

// replayLimit is how many bytes of a request's body are kept until the API server
// answers, so that a request which it turned away unseen (HTTP/2 GOAWAY or
// REFUSED_STREAM, a connection closed while idle) can be sent again. Requests of
// people and controllers are smaller; larger uploads are not repeated.
const replayLimit = 64 << 10

// errTooLarge means that a body outgrew what is kept of it.
var errTooLarge = errors.New("the body is too large to be sent again")

// makeReplayable lets the transport send r a second time. Whether that is safe
// is the transport's decision: it asks only when the server has not acted on r.
func makeReplayable(r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody || isUpgrade(r) || r.ContentLength > replayLimit {
		return
	}
	b := &replayBody{source: r.Body}
	r.Body = b.reader()
	r.GetBody = func() (io.ReadCloser, error) {
		if b.overflowed() {
			return nil, errTooLarge
		}
		return b.reader(), nil
	}
}

// replayBody remembers what was read of source, up to replayLimit.
type replayBody struct {
	mu     sync.Mutex // one reader at a time touches source and kept
	source io.ReadCloser
	read   int          // bytes of source
	kept   bytes.Buffer // all of them, unless lost
	lost   bool         // they were more than replayLimit
	err    error
}

func (b *replayBody) overflowed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lost
}

// reader returns the body from its beginning.
func (b *replayBody) reader() io.ReadCloser { return &replayReader{body: b} }

type replayReader struct {
	body   *replayBody
	offset int
}

// Read returns what earlier readers have read first, then reads on. It blocks
// while another reader waits for the client; the transport closes that one.
func (r *replayReader) Read(p []byte) (int, error) {
	b := r.body
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case r.offset == b.read && b.err != nil:
		return 0, b.err
	case r.offset < b.read && b.lost:
		return 0, errTooLarge // never skip what is not kept
	case r.offset < b.read:
		n := copy(p, b.kept.Bytes()[r.offset:])
		r.offset += n
		return n, nil
	}
	n, err := b.source.Read(p)
	b.read, b.err = b.read+n, err
	r.offset = b.read
	if b.lost = b.read > replayLimit; b.lost {
		b.kept = bytes.Buffer{}
	} else {
		b.kept.Write(p[:n])
	}
	return n, err
}

// Close leaves the source open: a second attempt may need it, and net/http closes
// the body of the client's request itself when the handler returns.
func (r *replayReader) Close() error { return nil }

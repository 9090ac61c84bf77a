// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
)

// BenchmarkTap is what a recorded session costs a read of 32 KiB.
func BenchmarkTap(b *testing.B) {
	noise := make([]byte, 32<<10-5)
	random := rand.NewChaCha8([32]byte{})
	_, _ = random.Read(noise)
	for name, text := range map[string][]byte{"text": bytes.Repeat([]byte("drwxr-xr-x 2 root root\r\n"), 1365), "noise": noise} {
		b.Run(name, func(b *testing.B) {
			r, up := newFake(true)
			go func() { _, _ = io.Copy(io.Discard, up) }()
			frame := frames(ws{first: 0x82, payload: "\x01" + string(text)})
			session, err := r.Tap(newEnd(&loop{frame: frame}), webSocketAnswer, func(error) {})
			if err != nil {
				b.Fatal(err)
			}
			p := make([]byte, len(frame))
			b.SetBytes(int64(len(frame)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := session.Read(p); err != nil {
					b.Fatal(err)
				}
			}
			up.cancel()
			_ = r.Finish()
		})
	}
}

// loop says the same again and again.
type loop struct{ frame []byte }

func (l *loop) Read(p []byte) (int, error) { return copy(p, l.frame), nil }

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"tailscale.com/sessionrecording"
)

// A first line is as long as what it says, and no longer than recorders take.
func TestHead(t *testing.T) {
	for name, tc := range map[string]struct {
		command string
		fits    bool
	}{
		"plain":               {strings.Repeat("<&>", 20_000), true},
		"too long":            {strings.Repeat("x", maxHeader), false},
		"too long as escaped": {strings.Repeat("\x01", 12_000), false},
	} {
		t.Run(name, func(t *testing.T) {
			s := Session{Header: sessionrecording.CastHeader{Command: tc.command}}
			head, err := s.head(time.Now())
			if tooLong := (*HeaderTooLongError)(nil); errors.As(err, &tooLong) == tc.fits {
				t.Fatalf("%d bytes, %v", len(head), err)
			}
			if !tc.fits {
				return
			}
			if h, _ := parseCast(t, string(head)); h.Command != tc.command {
				t.Errorf("it says %.100q", h.Command)
			}
		})
	}
}

// A string says what encoding/json reads from it, and no more than that.
func FuzzString(f *testing.F) {
	for _, text := range []string{"", "plain", "\x00\x1b[0m\"\\\x7f", "é€😀", "\xff\xc3", "\xed\xa0\x80", "\u2028<&>"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		encoded := appendString(nil, text)
		var got string
		if err := json.Unmarshal(encoded, &got); err != nil {
			t.Fatalf("%q becomes %q: %v", text, encoded, err)
		}
		if want := string([]rune(string(text))); got != want || !utf8.Valid(encoded) {
			t.Fatalf("%q becomes %q, which says %q", text, encoded, got)
		}
	})
}

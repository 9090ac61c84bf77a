// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"encoding/json"
	"testing"
	"unicode/utf8"
)

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

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"

	"tailscale.com/sessionrecording"
)

// stream is one of the streams of a session.
type stream int

const (
	other stream = iota // standard input, or one that nobody knows
	stdout
	stderr
	errorStream
	resize
)

// size is the size of a terminal.
type size struct{ Width, Height uint16 }

// defaultSize is that of a terminal which does not tell its own.
var defaultSize = size{80, 24}

// cast encodes an asciicast of version 2 (https://docs.asciinema.org/manual/asciicast/v2/).
type cast struct {
	start time.Time
	// cut is the beginning of a character whose rest has not come yet, of each stream.
	cut map[stream][]byte
}

// appendHeader appends the first line.
func appendHeader(dst []byte, h sessionrecording.CastHeader) ([]byte, error) {
	line, err := json.Marshal(h)
	if err != nil {
		return dst, err
	}
	return append(append(dst, line...), '\n'), nil
}

// appendOutput appends what a stream says as events. The rest of a character that was
// cut off is an event of its own.
func (c *cast) appendOutput(dst []byte, from stream, text []byte, now time.Time) []byte {
	if cut := c.cut[from]; len(cut) > 0 {
		for len(text) > 0 && !utf8.FullRune(cut) {
			cut, text = append(cut, text[0]), text[1:]
		}
		c.cut[from] = cut
		if !utf8.FullRune(cut) {
			return dst
		}
		dst = c.appendEvent(dst, 'o', cut, now)
		c.cut[from] = cut[:0]
	}
	if end := lastWhole(text); end < len(text) {
		if c.cut == nil {
			c.cut = map[stream][]byte{}
		}
		c.cut[from] = append(c.cut[from], text[end:]...)
		text = text[:end]
	}
	if len(text) == 0 {
		return dst
	}
	return c.appendEvent(dst, 'o', text, now)
}

// appendRest appends the characters that were cut off for good.
func (c *cast) appendRest(dst []byte, now time.Time) []byte {
	for _, from := range []stream{stdout, stderr} {
		if cut := c.cut[from]; len(cut) > 0 {
			dst = c.appendEvent(dst, 'o', cut, now)
		}
	}
	c.cut = nil
	return dst
}

// appendSize appends a new size of the terminal.
func (c *cast) appendSize(dst []byte, s size, now time.Time) []byte {
	text := strconv.AppendUint(nil, uint64(s.Width), 10)
	text = strconv.AppendUint(append(text, 'x'), uint64(s.Height), 10)
	return c.appendEvent(dst, 'r', text, now)
}

func (c *cast) appendEvent(dst []byte, kind byte, text []byte, now time.Time) []byte {
	dst = append(dst, '[')
	dst = strconv.AppendFloat(dst, now.Sub(c.start).Seconds(), 'f', 6, 64)
	dst = append(dst, ',', '"', kind, '"', ',')
	return append(appendString(dst, text), ']', '\n')
}

// appendString appends text as a JSON string. Libraries do that, too, and need ten times
// as long for what is no text, such as the files that kubectl cp reads.
func appendString(dst, text []byte) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0 // what was not appended yet
	for i := 0; i < len(text); {
		c, n := text[i], 1
		switch {
		case c >= utf8.RuneSelf:
			var r rune
			if r, n = utf8.DecodeRune(text[i:]); r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
			dst = utf8.AppendRune(append(dst, text[from:i]...), utf8.RuneError)
		case c == '"' || c == '\\':
			dst = append(append(dst, text[from:i]...), '\\', c)
		case c < ' ':
			dst = append(append(dst, text[from:i]...), '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		default:
			i++
			continue
		}
		i += n
		from = i
	}
	return append(append(dst, text[from:]...), '"')
}

// lastWhole returns the length of text without a character that is cut off at its end.
func lastWhole(text []byte) int {
	for i := len(text) - 1; i >= 0 && i > len(text)-utf8.UTFMax; i-- {
		if utf8.RuneStart(text[i]) {
			if utf8.FullRune(text[i:]) {
				return len(text)
			}
			return i
		}
	}
	return len(text)
}

// maxSizeMessage is more than a message with the size of a terminal has.
const maxSizeMessage = 1 << 10

// sizes reads the messages with which a client tells the size of its terminal: JSON
// objects one after the other, cut anywhere.
type sizes struct {
	held []byte
	tell func(size)
}

// write takes in bytes of the stream. What is no size is skipped: the pod gets it all
// the same, and nothing is shown because of it.
func (s *sizes) write(p []byte) {
	for _, b := range p {
		s.held = append(s.held, b)
		if b != '}' && len(s.held) < maxSizeMessage {
			continue
		}
		var told size
		if err := json.Unmarshal(s.held, &told); err == nil && told.Width > 0 && told.Height > 0 {
			s.tell(told)
		}
		s.held = s.held[:0]
	}
}

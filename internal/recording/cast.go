// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bytes"
	"encoding/json"
	"fmt"
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

// defaultSize is that of a terminal which has not told its own.
var defaultSize = size{80, 24}

// cast encodes an asciicast of version 2 (https://docs.asciinema.org/manual/asciicast/v2/).
type cast struct {
	start time.Time
	// cut is the beginning of a character whose rest has not come yet, of each stream.
	cut map[stream][]byte
}

// maxHeader is how many bytes the first line of a recording may have: more than the
// command of a request takes whose headers net/http reads, unless much of it has to be
// escaped. Recorders need not take longer ones; ours does not.
const maxHeader = 64 << 10

// HeaderTooLongError means that a session cannot be recorded, because the first line of
// the recording, which has the command, would be too long for recorders. A command that is
// cut off would hide what the session did.
type HeaderTooLongError struct {
	// Length is the length of the line in bytes.
	Length int
}

// Error says how long the line would be, and how long it may be.
func (e *HeaderTooLongError) Error() string {
	return fmt.Sprintf("its command and names take %d bytes in a recording, which has room for %d", e.Length, maxHeader)
}

// Session is what a recording says about itself.
type Session struct {
	// Header is the first line of the asciicast; its version, size and time are filled in.
	Header sessionrecording.CastHeader
	// TTY means that the session has a terminal, whose size the client will tell.
	TTY bool
}

// head returns the first line of a recording that begins now. Its error is a
// [*HeaderTooLongError], or one of encoding.
func (s Session) head(now time.Time) ([]byte, error) {
	h := s.Header
	h.Version, h.Timestamp = 2, now.Unix()
	if s.TTY {
		h.Width, h.Height = int(defaultSize.Width), int(defaultSize.Height) // see resize
	}
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(h); err != nil {
		return nil, fmt.Errorf("encoding the header of a recording: %w", err)
	}
	if n := line.Len() - 1; n > maxHeader {
		return nil, &HeaderTooLongError{Length: n}
	}
	return line.Bytes(), nil
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

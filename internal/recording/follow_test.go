// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recording

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/moby/spdystream/spdy"
)

// said is what a follower made of the bytes, joined by stream.
type said map[stream]string

// listener gathers what a follower says.
type listener [resize + 1][]byte

func (l *listener) take(from stream, p []byte) error {
	l[from] = append(l[from], p...)
	return nil
}

func (l *listener) said() said {
	got := said{}
	for from, text := range l {
		got[stream(from)] = string(text)
	}
	return got
}

// follow lets a follower take in p in pieces of n bytes.
func follow(f follower, p []byte, n int) error {
	for chunk := range slices.Chunk(p, n) {
		if err := f.parse(chunk); err != nil {
			return err
		}
	}
	return nil
}

// ws is a WebSocket frame.
type ws struct {
	first   byte // FIN, RSV and opcode
	payload string
	mask    string
	// long takes the longest form of the length.
	long bool
}

func (f ws) bytes() []byte {
	b, masked := []byte{f.first}, byte(0)
	if f.mask != "" {
		masked = 0x80
	}
	switch n := len(f.payload); {
	case f.long:
		b = binary.BigEndian.AppendUint64(append(b, masked|127), uint64(n))
	case n > 125:
		b = binary.BigEndian.AppendUint16(append(b, masked|126), uint16(n)) //nolint:gosec // the test chooses the form of the length
	default:
		b = append(b, masked|byte(n))
	}
	b = append(b, f.mask...)
	for i := range len(f.payload) {
		c := f.payload[i]
		if f.mask != "" {
			c ^= f.mask[i%4]
		}
		b = append(b, c)
	}
	return b
}

func frames(list ...ws) []byte {
	var b []byte
	for _, f := range list {
		b = append(b, f.bytes()...)
	}
	return b
}

func TestWebSocket(t *testing.T) {
	large := strings.Repeat("0123456789", 10_000)
	for name, tc := range map[string]struct {
		p    []byte
		want said
		err  string
	}{
		"both outputs, and others": {frames(ws{first: 0x82, payload: "\x01out"}, ws{first: 0x82, payload: "\x02err"}, ws{first: 0x82, payload: "\x03{}"}, ws{first: 0x82, payload: "\x00in"}, ws{first: 0x82, payload: "\xff\x00"}), said{stdout: "out", stderr: "err", errorStream: "{}"}, ""},
		"text frames":              {frames(ws{first: 0x81, payload: "\x01out"}), said{stdout: "out"}, ""},
		"empty":                    {frames(ws{first: 0x82}, ws{first: 0x82, payload: "\x01"}, ws{first: 0x82, payload: "\x01x"}), said{stdout: "x"}, ""},
		"large, each length":       {frames(ws{first: 0x82, payload: "\x01" + large, long: true}, ws{first: 0x82, payload: "\x01" + large[:300]}, ws{first: 0x82, payload: "\x01a", long: true}), said{stdout: large + large[:300] + "a"}, ""},
		"fragments":                {frames(ws{first: 0x02, payload: "\x01a"}, ws{first: 0x00, payload: "\x02b"}, ws{first: 0x80, payload: "c"}, ws{first: 0x82, payload: "\x02d"}), said{stdout: "a\x02bc", stderr: "d"}, ""},
		"fragments without a byte": {frames(ws{first: 0x02}, ws{first: 0x00}, ws{first: 0x80, payload: "\x01c"}), said{stdout: "c"}, ""},
		"control between them":     {frames(ws{first: 0x02, payload: "\x01a"}, ws{first: 0x89, payload: "\x02ping"}, ws{first: 0x8a}, ws{first: 0x80, payload: "b"}, ws{first: 0x88, payload: "\x03\xe8"}), said{stdout: "ab"}, ""},
		"masked":                   {frames(ws{first: 0x82, payload: "\x04" + large, mask: "\x01\xf2\x73\x04", long: true}, ws{first: 0x02, payload: "\x04", mask: "abcd"}, ws{first: 0x80, payload: "xyz", mask: "efgh"}), said{resize: large + "xyz"}, ""},
		"extension bits":           {frames(ws{first: 0xc2, payload: "\x01x"}), nil, "extensions"},
		"continuation of nothing":  {frames(ws{first: 0x80, payload: "\x01x"}), nil, "opcode 0"},
		"message in a message":     {frames(ws{first: 0x02, payload: "\x01x"}, ws{first: 0x82, payload: "\x01x"}), said{stdout: "x"}, "opcode 2"},
		"unknown opcode":           {frames(ws{first: 0x83, payload: "\x01x"}), nil, "opcode 3"},
		"large control frame":      {frames(ws{first: 0x89, payload: large[:200]}), nil, "control frame"},
		"cut control frame":        {frames(ws{first: 0x09, payload: "x"}), nil, "control frame"},
		"impossible length":        {[]byte{0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0}, nil, "impossible length"},
	} {
		for _, n := range []int{1, 2, 3, 7, 4096, 1 << 20} {
			t.Run(fmt.Sprintf("%s, by %d", name, n), func(t *testing.T) {
				var got listener
				err := follow(&webSocket{take: got.take}, tc.p, n)
				check(t, err, tc.err, got.said(), tc.want)
			})
		}
	}
}

func check(t *testing.T, err error, wantErr string, got, want said) {
	t.Helper()
	if (err == nil) != (wantErr == "") || err != nil && !strings.Contains(err.Error(), wantErr) {
		t.Errorf("error %v, want %q", err, wantErr)
	}
	for _, from := range []stream{other, stdout, stderr, errorStream, resize} {
		if got[from] != want[from] {
			t.Errorf("stream %d says %.100q, want %.100q", from, got[from], want[from])
		}
	}
}

// client writes frames as a client of SPDY does.
type client struct {
	t *testing.T
	bytes.Buffer
	*spdy.Framer
}

func newClient(t *testing.T) *client {
	t.Helper()
	c := &client{t: t}
	var err error
	if c.Framer, err = spdy.NewFramer(&c.Buffer, nil); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *client) send(list ...spdy.Frame) *client {
	c.t.Helper()
	for _, f := range list {
		if err := c.WriteFrame(f); err != nil {
			c.t.Fatal(err)
		}
	}
	return c
}

// open opens a stream.
func open(id spdy.StreamId, streamType string) *spdy.SynStreamFrame {
	return &spdy.SynStreamFrame{StreamId: id, Headers: map[string][]string{"Streamtype": {streamType}}}
}

func data(id spdy.StreamId, text string) *spdy.DataFrame {
	return &spdy.DataFrame{StreamId: id, Data: []byte(text)}
}

func TestSPDY(t *testing.T) {
	large := strings.Repeat("0123456789", 20_000)
	opened := []spdy.Frame{open(1, "error"), open(3, "stdin"), open(5, "stdout"), open(7, "stderr"), open(257, "resize")}
	reply := func(id spdy.StreamId) spdy.Frame { return &spdy.SynReplyFrame{StreamId: id} }
	for name, tc := range map[string]struct {
		client, pod []spdy.Frame
		rawClient   []byte
		rawPod      []byte
		want        said
		err         string
	}{
		"each stream": {
			client: append(slices.Clone(opened), data(3, "in"), data(257, "size"), &spdy.PingFrame{Id: 1}, &spdy.SettingsFrame{}, &spdy.WindowUpdateFrame{StreamId: 1, DeltaWindowSize: 1}, data(257, "more")),
			pod:    []spdy.Frame{reply(1), reply(3), reply(5), data(5, "out"), data(7, "err"), &spdy.PingFrame{Id: 1}, data(5, large), data(5, ""), data(1, "{}"), &spdy.RstStreamFrame{StreamId: 5, Status: spdy.Cancel}, &spdy.GoAwayFrame{}},
			want:   said{resize: "sizemore", stdout: "out" + large, stderr: "err", errorStream: "{}"},
		},
		"headers between streams": {
			client: []spdy.Frame{open(1, "stdin"), &spdy.HeadersFrame{StreamId: 1, Headers: map[string][]string{"Streamtype": {"stdout"}}}, open(5, "stdout")},
			pod:    []spdy.Frame{data(1, "no"), data(5, "out")}, want: said{stdout: "out"},
		},
		"a stream that is renamed":     {client: []spdy.Frame{open(5, "stdout"), open(5, "stdin")}, err: "opened twice"},
		"capitals":                     {client: []spdy.Frame{open(5, "STDOUT")}, pod: []spdy.Frame{data(5, "no")}},
		"nobody's stream":              {pod: []spdy.Frame{data(9, "x")}, err: "nobody has opened"},
		"data of a client for nothing": {client: []spdy.Frame{data(9, "x")}},
		"a stream of the pod":          {pod: []spdy.Frame{open(2, "stdout")}, err: "the pod opens"},
		"an unknown control frame":     {rawClient: []byte{0x80, 3, 0, 5, 0, 0, 0, 0}, err: "unknown type 5"},
		"large headers":                {rawClient: []byte{0x80, 3, 0, 1, 0, 1, 0, 0}, err: "65536 bytes"},
		"headers that are none":        {rawClient: append([]byte{0x80, 3, 0, 1, 0, 0, 0, 12}, "012345678901"...), err: "reading SPDY headers"},
		"no room for headers":          {rawClient: []byte{0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0}, err: "reading SPDY headers"},
	} {
		for _, n := range []int{1, 3, 8, 9, 4096, 1 << 20} {
			t.Run(fmt.Sprintf("%s, by %d", name, n), func(t *testing.T) {
				var got listener
				streams := &spdyStreams{}
				up, down := &spdySession{streams: streams, fromClient: true, take: got.take}, &spdySession{streams: streams, take: got.take}
				err := follow(up, append(newClient(t).send(tc.client...).Bytes(), tc.rawClient...), n)
				if err == nil {
					err = follow(down, append(newClient(t).send(tc.pod...).Bytes(), tc.rawPod...), n)
				}
				check(t, err, tc.err, got.said(), tc.want)
			})
		}
	}
}

// What a client can make us keep is bounded.
func TestSPDYLimits(t *testing.T) {
	for name, build := range map[string]func(c *client){
		"streams": func(c *client) {
			for id := range spdy.StreamId(maxStreams + 1) {
				c.send(open(2*id+1, "stdout"))
			}
		},
		"a long value": func(c *client) { c.send(open(1, strings.Repeat("x", maxSPDYField+1))) },
		"many headers": func(c *client) {
			h := map[string][]string{}
			for i := range maxSPDYHeaders + 1 {
				h[fmt.Sprint("H", i)] = []string{"v"}
			}
			c.send(&spdy.SynStreamFrame{StreamId: 1, Headers: h})
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t)
			build(c)
			s := &spdySession{streams: &spdyStreams{}, fromClient: true, take: func(stream, []byte) error { return nil }}
			if err := s.parse(c.Bytes()); err == nil {
				t.Error("it was taken in")
			}
		})
	}
}

// splits says that a follower makes the same of the same bytes, however they come.
func splits(t *testing.T, p []byte, cut int, follower func(take func(stream, []byte) error) follower) {
	t.Helper()
	run := func(n int) (said, error) {
		var got listener
		err := follow(follower(got.take), p, n)
		return got.said(), err
	}
	whole, wholeErr := run(max(1, len(p)))
	cuts, cutsErr := run(cut)
	if fmt.Sprint(wholeErr) != fmt.Sprint(cutsErr) {
		t.Fatalf("error %v at once, %v in pieces of %d", wholeErr, cutsErr, cut)
	}
	for from := range whole {
		if whole[from] != cuts[from] {
			t.Fatalf("stream %d says %q at once, %q in pieces of %d", from, whole[from], cuts[from], cut)
		}
	}
}

func FuzzWebSocket(f *testing.F) {
	f.Add(frames(ws{first: 0x82, payload: "\x01out"}, ws{first: 0x02, payload: "\x04{", mask: "abcd"}, ws{first: 0x89}, ws{first: 0x80, payload: "}", mask: "efgh"}), uint8(3))
	f.Add([]byte{0x82, 127, 0, 0, 0, 0, 0, 0, 0, 2, 1, 'x'}, uint8(1))
	f.Fuzz(func(t *testing.T, p []byte, cut uint8) {
		splits(t, p, max(1, int(cut)), func(take func(stream, []byte) error) follower { return &webSocket{take: take} })
	})
}

func FuzzSPDY(f *testing.F) {
	var c client
	var err error
	if c.Framer, err = spdy.NewFramer(&c.Buffer, nil); err != nil {
		f.Fatal(err)
	}
	for _, frame := range []spdy.Frame{open(1, "error"), open(3, "stdout"), data(3, "x"), &spdy.PingFrame{Id: 1}, open(5, "resize"), data(5, `{"Width":1,"Height":2}`)} {
		if err := c.WriteFrame(frame); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(c.Bytes(), uint8(3), true)
	f.Add([]byte{0, 0, 0, 3, 1, 0, 0, 1, 'x'}, uint8(1), false)
	f.Fuzz(func(t *testing.T, p []byte, cut uint8, fromClient bool) {
		splits(t, p, max(1, int(cut)), func(take func(stream, []byte) error) follower {
			streams := &spdyStreams{types: map[uint32]stream{3: stdout}}
			return &spdySession{streams: streams, fromClient: fromClient, take: take}
		})
	})
}

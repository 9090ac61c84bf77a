// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"sync"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/util/zstdframe"
)

// keepAlive is how long a stream may be silent. Devices give up after two
// minutes.
const keepAlive = 50 * time.Second

// mapStream is a device's open request for its netmap. While there is one the
// device is online.
type mapStream struct{ cancel context.CancelFunc }

// serveMap answers /machine/map: with Stream, the netmap and its changes for
// as long as the request lasts; without, it takes what the device says of
// itself.
func (t *Tailnet) serveMap(w http.ResponseWriter, r *http.Request) {
	var req tailcfg.MapRequest
	if !readJSON(w, r, &req) {
		return
	}
	t.mu.Lock()
	n := t.nodes[req.NodeKey]
	t.mu.Unlock()
	if n == nil || n.machine != machineOf(r) {
		http.Error(w, "node not found", http.StatusNotFound)
		return
	}
	out := mapWriter{w: w, compress: req.Compress == "zstd"}
	if req.Stream {
		t.stream(r.Context(), n, &req, out)
		return
	}
	res := &tailcfg.MapResponse{}
	t.mu.Lock()
	t.updateLocked(n, &req)
	if !req.OmitPeers {
		res = t.netmapLocked(n, time.Now()).full(t)
	}
	t.mu.Unlock()
	if err := out.send(res); err != nil {
		t.opts.Logf("answering %s: %v", n.name, err)
	}
}

// updateLocked notes what a device says of itself.
func (t *Tailnet) updateLocked(n *node, req *tailcfg.MapRequest) {
	n.version, n.disco, n.endpoints = req.Version, req.DiscoKey, req.Endpoints
	if h := req.Hostinfo; h != nil {
		n.hostinfo = h
		t.renameLocked(n, h.Hostname)
		if h.NetInfo != nil && h.NetInfo.PreferredDERP != 0 {
			n.homeDERP = h.NetInfo.PreferredDERP
		}
	}
	t.bumpLocked()
}

// stream sends n its netmap, and each change until ctx ends, the device is
// removed, or it opens another stream.
func (t *Tailnet) stream(ctx context.Context, n *node, req *tailcfg.MapRequest, out mapWriter) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	me := &mapStream{cancel: cancel}
	t.change(func() {
		if n.stream != nil {
			n.stream.cancel()
		}
		n.stream = me
	})
	defer t.change(func() {
		n.lastSeen = time.Now()
		if n.stream == me {
			n.stream = nil
			n.adverts = nil // it may come back as another process
		}
	})
	var follow sync.WaitGroup
	follow.Go(func() { t.followAdverts(ctx, n) })
	err := t.sendChanges(ctx, n, req, out)
	cancel()
	follow.Wait()
	t.opts.Logf("stream of %s ends: %v", n.name, err)
}

func (t *Tailnet) sendChanges(ctx context.Context, n *node, req *tailcfg.MapRequest, out mapWriter) error {
	idle := time.NewTimer(keepAlive)
	defer idle.Stop()
	var prev *netmap
	for {
		t.mu.Lock()
		// A new key has a stream of its own: this one serves the old key.
		if n.removed || n.key != req.NodeKey {
			t.mu.Unlock()
			return errors.New("the node key is gone")
		}
		changed := t.changed
		cur := t.netmapLocked(n, time.Now())
		var ping *tailcfg.PingRequest
		if len(n.pings) > 0 { // one fits in a message
			ping, n.pings = n.pings[0], n.pings[1:]
		}
		t.mu.Unlock()

		var res *tailcfg.MapResponse
		if prev == nil {
			res = cur.full(t)
		} else {
			res = cur.since(prev)
		}
		prev = cur
		if ping != nil {
			if res == nil {
				res = &tailcfg.MapResponse{}
			}
			res.PingRequest = ping
		}
		if res != nil {
			if err := out.send(res); err != nil {
				return err
			}
			idle.Reset(keepAlive)
		}
		if ping != nil {
			continue // there may be another
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-idle.C:
			if err := out.send(&tailcfg.MapResponse{KeepAlive: true}); err != nil {
				return err
			}
			idle.Reset(keepAlive)
		}
	}
}

// mapWriter frames messages: their length in four bytes, little-endian, then
// JSON, compressed if the device asked for it.
type mapWriter struct {
	w        http.ResponseWriter
	compress bool
}

func (m mapWriter) send(res *tailcfg.MapResponse) error {
	body, err := json.Marshal(res)
	if err != nil {
		return fmt.Errorf("encoding a map response: %w", err)
	}
	if m.compress {
		body = zstdframe.AppendEncode(nil, body, zstdframe.FastestCompression)
	}
	if len(body) > math.MaxInt32 {
		return fmt.Errorf("map response of %d bytes is too big", len(body))
	}
	frame := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))) //nolint:gosec // bounded above
	if _, err := m.w.Write(append(frame, body...)); err != nil {
		return err
	}
	return http.NewResponseController(m.w).Flush()
}

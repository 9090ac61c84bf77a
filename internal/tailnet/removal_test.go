// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tailscale.com/ipn"

	testtailnet "github.com/tailhelm/tailhelm/test/tailnet"
)

// patience bounds what takes seconds, on a machine that does much else.
const patience = 2 * time.Minute

// soon notices a removal as soon as it can be noticed.
var soon = removalTiming{interval: 20 * time.Millisecond, silence: 100 * time.Millisecond, timeout: patience, answers: 3}

// never leaves it to the test to look.
var never = removalTiming{interval: time.Hour, timeout: patience, answers: 3}

// running is a node that runs, on a tailnet of its own with a peer that calls it.
type running struct {
	*Node
	t       *testing.T
	tailnet *testtailnet.Tailnet
	peer    *testtailnet.Device
}

// newRunning runs a node until the test ends.
func newRunning(t *testing.T, tn *testtailnet.Tailnet, dir string, timing removalTiming, keys AuthKeys, log *slog.Logger) *running {
	t.Helper()
	n, err := NewNode(Config{Hostname: "kube", Dir: dir, ControlURL: tn.URL(), AuthKeys: keys, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	n.removal = timing
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run returns %v", err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &running{Node: n, t: t, tailnet: tn}
	r.until("ready", func(s status) bool { return s.state == ipn.Running })
	return r
}

// serve has the node answer its peer, and makes that.
func (r *running) serve() {
	r.t.Helper()
	l, err := r.Listen(80)
	if err != nil {
		r.t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }), ReadHeaderTimeout: patience}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	r.t.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
	r.peer, err = r.tailnet.Device(within(r.t), "laptop", testtailnet.Identity{Login: "user@example.com"})
	if err != nil {
		r.t.Fatal(err)
	}
	r.call()
}

// call waits until the peer reaches the node by its name.
func (r *running) call() {
	r.t.Helper()
	ctx := within(r.t)
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://kube."+r.tailnet.Domain(), nil)
		if err != nil {
			r.t.Fatal(err)
		}
		response, err := r.peer.HTTPClient().Do(request)
		if err == nil {
			_ = response.Body.Close()
			return
		}
		if ctx.Err() != nil {
			r.t.Fatalf("calling the node: %v", err)
		}
	}
}

// until waits until a condition holds for the node's status.
func (r *running) until(what string, condition func(status) bool) {
	r.t.Helper()
	if err := r.await(within(r.t), condition); err != nil {
		r.t.Fatalf("waiting until %s: %v; ready: %v", what, err, r.Ready(r.t.Context()))
	}
}

// unready waits until the node is not ready because of something.
func (r *running) unready(words ...string) {
	r.t.Helper()
	r.until("not ready because "+strings.Join(words, ", "), func(status) bool { return r.says(words...) })
}

// says reports whether the node is not ready because of something. It is called with the
// status, too, and so asks for it again.
func (r *running) says(words ...string) bool {
	err := r.Ready(r.t.Context())
	for _, word := range words {
		if err == nil || !strings.Contains(err.Error(), word) {
			return false
		}
	}
	return true
}

// within is a context for the test and what takes seconds.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// heldKeys wait with the second key until they may give it.
type heldKeys struct {
	tailnet *testtailnet.Tailnet
	once    sync.Once
	free    chan struct{}
}

func (k *heldKeys) AuthKey(ctx context.Context) (string, error) {
	first := false
	k.once.Do(func() { first = true })
	if !first {
		select {
		case <-k.free:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	return k.tailnet.CreateKey(testtailnet.KeyOptions{Identity: testtailnet.Identity{Tags: []string{"tag:k8s"}}, SingleUse: true}), nil
}

// device returns the tailnet's device with the node's name, or none.
func device(tn *testtailnet.Tailnet) (found testtailnet.DeviceStatus) {
	for _, d := range tn.Devices() {
		if d.Hostname == "kube" {
			found = d
		}
	}
	return found
}

// A device that is removed from the tailnet while it runs says so, logs in again as a
// new one, and serves its peers under its name.
func TestRemoved(t *testing.T) {
	t.Parallel()
	tn := testtailnet.New(t, testtailnet.Options{})
	keys := &heldKeys{tailnet: tn, free: make(chan struct{})}
	r := newRunning(t, tn, t.TempDir(), soon, keys, quiet)
	r.serve()
	old := device(tn)
	if err := tn.Remove("kube"); err != nil {
		t.Fatal(err)
	}
	r.unready("was removed from the tailnet", "logging in again with a new auth key")
	close(keys.free)
	r.until("ready again", func(s status) bool { return s.state == ipn.Running && !s.isRemoved() })
	if err := r.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	if now := device(tn); now.ID == old.ID || now.FQDN != old.FQDN || string(r.currentStatus().id) != now.ID {
		t.Errorf("the device is %+v, was %+v; the node takes itself for %s", now, old, r.currentStatus().id)
	}
	r.call()
}

// A device without auth keys is one that a person logs in, and says so.
func TestRemovedWithoutKeys(t *testing.T) {
	t.Parallel()
	tn, dir := testtailnet.New(t, testtailnet.Options{}), t.TempDir()
	t.Run("logged in by a person", func(t *testing.T) {
		newRunning(t, tn, dir, never, FixedAuthKey(tn.AuthKey(testtailnet.Identity{Tags: []string{"tag:k8s"}})), quiet)
	})
	r := newRunning(t, tn, dir, soon, nil, quiet)
	if err := tn.Remove("kube"); err != nil {
		t.Fatal(err)
	}
	r.unready("was removed from the tailnet", "log it in again: the log has the address to open")
}

// outOfPoll waits until the node does not follow the netmap any more, and inPoll until it
// does.
func (r *running) outOfPoll() { r.t.Helper(); r.untilPoll(false) }
func (r *running) inPoll()    { r.t.Helper(); r.untilPoll(true) }

func (r *running) untilPoll(want bool) {
	r.t.Helper()
	ctx, tick := within(r.t), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for r.server.Sys().HealthTracker.Get().GetInPollNetMap() != want {
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("the node follows the netmap: %v", !want)
		}
	}
}

// watchByHand returns what looks whether the node was removed. It knows the control server.
func (r *running) watchByHand() *removalWatch {
	r.t.Helper()
	w := &removalWatch{node: r.Node, timing: never}
	r.t.Cleanup(func() { w.use(nil) })
	if err := w.look(r.t.Context()); err != nil || w.server == nil {
		r.t.Fatalf("looking up the control server: %v", err)
	}
	return w
}

// Nothing but the control server's own word counts: while it is away, has errors, or
// something else answers in its place, for however long, nobody's access is dropped.
func TestNotRemoved(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		path  string // of the fault, or "" for none
		fault testtailnet.Fault
		start bool // the control server runs
		other bool // another control server runs in its place
	}{
		"away":                      {},
		"server errors":             {path: testtailnet.PathMap, fault: testtailnet.Fault{Status: http.StatusInternalServerError}, start: true},
		"overloaded":                {path: testtailnet.PathMap, fault: testtailnet.Fault{Status: http.StatusServiceUnavailable, RetryAfter: time.Minute}, start: true},
		"404 of a proxy on the way": {path: "/", fault: testtailnet.Fault{Status: http.StatusNotFound}, start: true},
		"another control server":    {other: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tn := testtailnet.New(t, testtailnet.Options{})
			r := newRunning(t, tn, t.TempDir(), never, FixedAuthKey(tn.AuthKey(testtailnet.Identity{Tags: []string{"tag:k8s"}})), quiet)
			r.serve()
			before, w := device(tn), r.watchByHand()
			if err := tn.StopControl(); err != nil {
				t.Fatal(err)
			}
			if tc.path != "" {
				tn.Fail(tc.path, tc.fault)
			}
			if tc.start {
				if err := tn.StartControl(); err != nil {
					t.Fatal(err)
				}
			}
			if tc.other {
				testtailnet.New(t, testtailnet.Options{ListenPort: port(t, tn)})
			}
			r.outOfPoll()
			w.timing.timeout = time.Second // Tailscale's code dials until then
			for range 2 * never.answers {
				if err := w.look(within(t)); err == nil {
					t.Error("the control server could be asked")
				}
				if s := r.currentStatus(); s.isRemoved() || w.unknown != 0 {
					t.Fatalf("the node takes itself for removed: %v after %d answers", s.isRemoved(), w.unknown)
				}
			}
			if err := r.Ready(t.Context()); err != nil {
				t.Error(err)
			}
			if err := r.Warning(t.Context()); err == nil || !strings.Contains(err.Error(), "no word from the control server since 20") {
				t.Errorf("the node warns %v, want that it hears nothing", err)
			}
			r.call()
			if now := device(tn); now.ID != before.ID {
				t.Errorf("the device is %+v, was %+v", now, before)
			}
		})
	}
}

// port returns the port of a tailnet's control server.
func port(t *testing.T, tn *testtailnet.Tailnet) int {
	t.Helper()
	u, err := url.Parse(tn.URL())
	if err != nil {
		t.Fatal(err)
	}
	p, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The control server's word counts after a silence, when nothing else was heard in between.
func TestRemovalIsProven(t *testing.T) {
	t.Parallel()
	tn := testtailnet.New(t, testtailnet.Options{})
	r := newRunning(t, tn, t.TempDir(), never, &heldKeys{tailnet: tn, free: make(chan struct{})}, quiet)
	w := r.watchByHand()
	look := func(times, unknown int, removed bool) {
		t.Helper()
		for range times {
			if err := w.look(within(t)); err != nil {
				t.Fatal(err)
			}
		}
		if s := r.currentStatus(); s.isRemoved() != removed || w.unknown != unknown {
			t.Fatalf("removed: %v after %d answers, want %v after %d", s.isRemoved(), w.unknown, removed, unknown)
		}
	}
	if err := tn.StopControl(); err != nil {
		t.Fatal(err)
	}
	restore := tn.Fail(testtailnet.PathMap, testtailnet.Fault{Status: http.StatusNotFound, Message: "node not found"})
	if err := tn.StartControl(); err != nil {
		t.Fatal(err)
	}
	r.outOfPoll()
	w.timing.silence = time.Hour
	look(2*never.answers, 0, false)
	w.timing.silence = 0
	look(never.answers-1, never.answers-1, false)
	restore()
	look(1, 0, false) // it is known after all
	r.inPoll()
	look(1, 0, false)
	if err := r.Warning(t.Context()); err != nil {
		t.Errorf("the node follows the netmap, and warns: %v", err)
	}
	if err := tn.Remove("kube"); err != nil {
		t.Fatal(err)
	}
	r.outOfPoll()
	w.use(nil) // as for a device that is removed in its first seconds
	look(never.answers-1, never.answers-1, false)
	look(1, never.answers, true)
}

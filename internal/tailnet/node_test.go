// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
)

// newTestNode returns a node that is not running.
func newTestNode(keys AuthKeys, log *slog.Logger) *Node {
	n := &Node{config: Config{AuthKeys: keys, Log: log}, changed: make(chan struct{})}
	n.peers = newPeers(nil, nil)
	return n
}

// What keeps a node off the tailnet is told with what to do about it.
func TestReady(t *testing.T) {
	for name, tc := range map[string]struct {
		status status
		want   string // "" is ready
	}{
		"running":              {status{state: ipn.Running}, ""},
		"back just now":        {status{state: ipn.Running, back: time.Now()}, "clients look for this device where it was before: ready in 7s"},
		"back for a while":     {status{state: ipn.Running, back: time.Now().Add(-pathTrust)}, ""},
		"running after errors": {status{state: ipn.Running, err: errors.New("x"), loginURL: "https://login/a"}, ""},
		"starting":             {status{state: ipn.Starting}, "not on the tailnet yet (state Starting)"},
		"key refused":          {status{state: ipn.NeedsLogin, err: errors.New("invalid key")}, "cannot log in to the tailnet: invalid key"},
		"approval":             {status{state: ipn.NeedsMachineAuth}, "approve it in the admin console"},
		"login by a person":    {status{state: ipn.NeedsLogin, loginURL: "https://login/secret"}, "the log has the address to open"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTestNode(nil, quiet)
			n.status = tc.status
			err := n.Ready(t.Context())
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("whoever asks for readiness could log the device in: %v", err)
			}
		})
	}
}

// What changes who peers are, and nothing else, makes answers stale.
func TestNoticeInvalidates(t *testing.T) {
	starting, message := ipn.Starting, "refused"
	for name, tc := range map[string]struct {
		note ipn.Notify
		want bool
	}{
		"nothing":         {ipn.Notify{}, false},
		"a message":       {ipn.Notify{ErrMessage: &message}, false},
		"peers changed":   {ipn.Notify{PeersChanged: []*tailcfg.Node{{}}}, true},
		"peers removed":   {ipn.Notify{PeersRemoved: []tailcfg.NodeID{1}}, true},
		"where peers are": {ipn.Notify{PeerChangedPatch: []*tailcfg.PeerChange{{}}}, false},
		"another profile": {ipn.Notify{UserProfiles: map[tailcfg.UserID]tailcfg.UserProfileView{1: {}}}, true},
		"another state":   {ipn.Notify{State: &starting}, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newTestNode(FixedAuthKey("k"), quiet)
			changed := n.Changed()
			n.notice(t.Context(), &tc.note)
			told := false
			select {
			case <-changed:
				told = true
			default:
			}
			if told != tc.want {
				t.Errorf("told of a change: %v", told)
			}
		})
	}
}

// The address at which a person logs the device in is for the log alone, and
// there is none to tell for a device that logs itself in.
func TestNoticeLoginURL(t *testing.T) {
	const address = "https://login.example.com/a/secret"
	for name, tc := range map[string]struct {
		keys AuthKeys
		want bool
	}{"a person logs in": {nil, true}, "a key logs in": {FixedAuthKey("k"), false}} {
		t.Run(name, func(t *testing.T) {
			var text strings.Builder
			n := newTestNode(tc.keys, slog.New(slog.NewJSONHandler(&text, nil)))
			url := address
			n.notice(t.Context(), &ipn.Notify{BrowseToURL: &url})
			if got := strings.Contains(text.String(), address); got != tc.want {
				t.Errorf("logged: %s", &text)
			}
			if got := n.status.loginURL != ""; got != tc.want {
				t.Errorf("address %q is kept", n.status.loginURL)
			}
		})
	}
}

func TestNoticeError(t *testing.T) {
	n := newTestNode(FixedAuthKey("k"), quiet)
	message := "invalid key: not valid"
	n.notice(t.Context(), &ipn.Notify{ErrMessage: &message})
	if err := n.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "the control server says: invalid key: not valid") {
		t.Errorf("error %v", err)
	}
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newTestNode(nil, quiet)
		got := make(chan error, 1)
		go func() { got <- n.await(t.Context(), func(s status) bool { return s.name == "kube" }) }()
		synctest.Wait()
		n.update(func(s *status) { s.name = "other" })
		synctest.Wait()
		if len(got) > 0 {
			t.Fatal("await returned before its condition held")
		}
		n.update(func(s *status) { s.name = "kube" })
		if err := <-got; err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := n.await(ctx, func(status) bool { return true }); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want that of the context", err)
		}
	})
}

// failingKeys fail a number of times.
type failingKeys struct{ left int }

func (k *failingKeys) AuthKey(context.Context) (string, error) {
	if k.left--; k.left >= 0 {
		return "", errors.New("the API is away")
	}
	return "tskey", nil
}

// The first key is tried for until there is one, and what is wrong is told for so long. A
// reason that stayed would have the login that comes next taken for one that failed.
func TestFirstKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newTestNode(&failingKeys{left: 3}, quiet)
		begin := time.Now()
		key, err := n.firstKey(t.Context())
		if key != "tskey" || err != nil || time.Since(begin) < loginBackoff.Duration {
			t.Errorf("key %q, %v after %v", key, err, time.Since(begin))
		}
		if err := n.currentStatus().err; err != nil {
			t.Errorf("with a key, what is wrong is still %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		n.config.AuthKeys = &failingKeys{left: 1000}
		if _, err := n.firstKey(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if err := n.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "the API is away") {
			t.Errorf("not ready because of %v", err)
		}
	})
}

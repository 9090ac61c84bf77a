// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"tailscale.com/ipn"
	"tailscale.com/types/key"
)

// removalTiming says when a device counts as removed from the tailnet.
type removalTiming struct {
	// interval is the time between two looks, and between two questions.
	interval time.Duration
	// silence is how long the control server must have sent nothing before it is asked.
	silence time.Duration
	// timeout bounds each question.
	timeout time.Duration
	// answers is how many times in a row it must say that it does not know the device.
	answers int
}

// defaultRemovalTiming notices a removal within a minute: Tailscale's code asks for the
// netmap again at least every 30 seconds, so after the silence it has failed to get one.
var defaultRemovalTiming = removalTiming{interval: 10 * time.Second, silence: 30 * time.Second, timeout: 10 * time.Second, answers: 3}

// removalWatch notices that the control server does not know the node any more. Tailscale's
// code does not tell: to it, the 404 that answers each request for a netmap is an error like
// a control server that is away, and it goes on with the last netmap for good. That is
// right while the control server is away, and must stay so: a new login drops the netmap and
// everybody's access with it. So a removal needs the control server's word: see
// [controlServer.knows].
type removalWatch struct {
	node   *Node
	timing removalTiming
	// server is the one that the last netmap came from, and current whether no login has
	// begun since it was looked up.
	server  *controlServer
	current bool
	heard   time.Time // when the netmap was last followed
	unknown int       // answers in a row that say that the node is unknown
	told    string    // the last error, which is logged once
}

// watchRemoval looks whether the node was removed from the tailnet, until ctx is done.
func (n *Node) watchRemoval(ctx context.Context) error {
	w := &removalWatch{node: n, timing: n.removal, heard: time.Now()}
	defer func() { w.use(nil) }()
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		err := w.look(ctx)
		if err == nil {
			w.told = ""
		} else if ctx.Err() == nil && err.Error() != w.told {
			w.told = err.Error()
			n.config.Log.InfoContext(ctx, "asking the control server whether it knows this device", "error", err)
		}
	}, w.timing.interval)
	return ctx.Err()
}

// look looks once. Its error is why the control server could not be asked: then nothing is
// known, and earlier answers do not count any more.
func (w *removalWatch) look(ctx context.Context) error {
	s := w.node.currentStatus()
	switch {
	case s.state != ipn.Running && s.state != ipn.Starting || s.isRemoved():
		w.current = false
		w.hear()
		return nil
	case w.node.server.Sys().HealthTracker.Get().GetInPollNetMap():
		w.hear()
		if w.current {
			return nil
		}
		return w.meet(ctx)
	case time.Since(w.heard) < w.timing.silence:
		return nil
	}
	if s.unheard.IsZero() {
		w.node.update(func(s *status) { s.unheard = w.heard })
	}
	if w.server == nil { // removed in the first seconds
		if err := w.meet(ctx); err != nil {
			return err
		}
	}
	return w.ask(ctx)
}

// hear notes that the control server speaks to the node, or is not expected to.
func (w *removalWatch) hear() {
	w.heard, w.unknown = time.Now(), 0
	if s := w.node.currentStatus(); !s.unheard.IsZero() {
		w.node.update(func(s *status) { s.unheard = time.Time{} })
	}
}

// meet looks up the control server, so that later nothing else is taken for it.
func (w *removalWatch) meet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.timing.timeout)
	defer cancel()
	server, err := w.node.controlServer(ctx)
	if err != nil {
		return err
	}
	w.use(server)
	w.current = true
	return nil
}

// ask asks the control server, and has the node log in again when it was removed.
func (w *removalWatch) ask(ctx context.Context) error {
	st, err := w.node.client.StatusWithoutPeers(ctx)
	if err != nil {
		return err
	}
	if st.Self == nil || st.Self.PublicKey.IsZero() {
		return errors.New("the device has no node key")
	}
	ctx, cancel := context.WithTimeout(ctx, w.timing.timeout)
	defer cancel()
	known, err := w.server.knows(ctx, st.Self.PublicKey)
	if err != nil || known {
		w.unknown = 0
		return err
	}
	if w.unknown++; w.unknown >= w.timing.answers {
		w.node.noteRemoval(ctx, st.Self.PublicKey)
	}
	return nil
}

// use replaces the control server that is asked.
func (w *removalWatch) use(server *controlServer) {
	if w.server != nil {
		w.server.close()
	}
	w.server = server
}

// noteRemoval notes that the control server does not know the node's key any more, which
// makes the node log in again.
func (n *Node) noteRemoval(ctx context.Context, nodeKey key.NodePublic) {
	s := n.currentStatus()
	n.config.Log.WarnContext(ctx, "this device was removed from the tailnet, and logs in again as a new one", "device", s.id, "name", s.name)
	n.update(func(s *status) { s.removedKey, s.err, s.loginURL = nodeKey, nil, "" })
}

// isRemoved reports whether the tailnet does not know the node any more.
func (s *status) isRemoved() bool { return !s.removedKey.IsZero() }

// removalError says of a node that was removed what happened and what is done about it.
func (n *Node) removalError(s *status) error {
	const removed = "this device was removed from the tailnet (the control server does not know it any more)"
	switch {
	case s.err != nil:
		return fmt.Errorf("%s, and cannot log in again: %w", removed, s.err)
	case n.config.AuthKeys != nil:
		return errors.New(removed + ": it is logging in again with a new auth key")
	case s.loginURL != "":
		return errors.New(removed + ": log it in again: the log has the address to open")
	}
	return errors.New(removed + ": log it in again: the log is about to have the address to open")
}

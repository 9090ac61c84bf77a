// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	watchPath            = mapsPath + "?watch=true&fieldSelector=metadata.name=" + small
	watchConnections     = 50
	watchesPerConnection = 10
	watches              = watchConnections * watchesPerConnection
	// eventsPerRound is how many events each watch gets, so that what it takes to carry them
	// is there, too.
	eventsPerRound = 10
)

// BenchmarkWatches measures what a watch adds to the memory of what is in the middle.
func BenchmarkWatches(b *testing.B) {
	ctx, s := setUp(b)
	memory := figures{}
	starts := []func(context.Context) (*way, error){s.startFloor, s.startProxy}
	for round := 0; b.Loop(); round++ {
		for _, start := range turns(starts, round) {
			w, err := start(ctx)
			if err != nil {
				b.Fatal(err)
			}
			added, err := s.watchMany(ctx, w)
			if err := errors.Join(err, w.stop()); err != nil {
				b.Fatal(err)
			}
			memory.add(w, added/watches)
		}
	}
	memory.report(b, "rss", "KiB/watch")
}

// watchMany opens watches and returns how much memory they add to what is in the middle, in
// KiB. The watches have ended then.
func (s *stage) watchMany(ctx context.Context, w *way) (added float64, err error) {
	ctx, expire := context.WithTimeout(ctx, patience)
	defer expire()
	ctx, cancel := w.watched(ctx)
	defer cancel()
	// The first request may make what all share.
	first, err := w.connect(ctx, 2)
	if err != nil {
		return 0, err
	}
	defer first.close()
	before, err := w.memory()
	if err != nil {
		return 0, err
	}
	watching, ctx := errgroup.WithContext(ctx)
	seen := make(chan string)
	for range watchConnections {
		c, err := w.connect(ctx, 2)
		if err != nil {
			return 0, errors.Join(err, end(cancel, watching))
		}
		defer c.close()
		for range watchesPerConnection {
			watching.Go(func() error { return c.watch(ctx, seen) })
		}
	}
	err = s.touch(ctx, seen)
	after, memoryErr := w.memory()
	return after - before, errors.Join(err, memoryErr, end(cancel, watching))
}

// end ends watches and returns the error of the first one that ended before.
func end(cancel context.CancelFunc, watching *errgroup.Group) error {
	cancel()
	if err := watching.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// touch has each watch carry events. It returns when all have seen all.
func (s *stage) touch(ctx context.Context, seen <-chan string) error {
	if err := awaitAll(ctx, seen, s.touched); err != nil { // how each watch begins
		return err
	}
	maps := s.cluster.Client().CoreV1().ConfigMaps(objects)
	for range eventsPerRound {
		s.touched = s.unique("touch")
		patch := fmt.Appendf(nil, `{"data":{"touched":%q}}`, s.touched)
		if _, err := maps.Patch(ctx, small, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return err
		}
		if err := awaitAll(ctx, seen, s.touched); err != nil {
			return err
		}
	}
	return nil
}

// awaitAll waits until each watch has seen a value.
func awaitAll(ctx context.Context, seen <-chan string, want string) error {
	for i := range watches {
		select {
		case got := <-seen:
			if got != want {
				return fmt.Errorf("a watch has %q, want %q", got, want)
			}
		case <-ctx.Done():
			return fmt.Errorf("%d of %d watches have not seen %q: %w", watches-i, watches, want, context.Cause(ctx))
		}
	}
	return nil
}

// watch watches the small ConfigMap until ctx is done, and sends what each event says that
// was written to it. Its error is never nil.
func (c *connection) watch(ctx context.Context, seen chan<- string) (err error) {
	res, err := c.open(ctx, watchPath)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, res.Body.Close()) }()
	for events := json.NewDecoder(res.Body); ; {
		var event struct{ Object corev1.ConfigMap }
		if err := events.Decode(&event); err != nil {
			return err
		}
		select {
		case seen <- event.Object.Data["touched"]:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

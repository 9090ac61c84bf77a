// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

// watcher is a watch that is begun again whenever it ends, from where it was.
type watcher struct {
	retry *watchtools.RetryWatcher

	mu   sync.Mutex
	seen map[int]bool
	// changed is closed and replaced with each event.
	changed chan struct{}
}

// watch begins a watch of the load's ConfigMap, which lives until ctx is done.
func (l *Load) watch(ctx context.Context, object *corev1.ConfigMap) (*watcher, error) {
	begun := false
	begin := func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
		options.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, object.Name).String()
		w, err := l.shared.CoreV1().ConfigMaps(object.Namespace).Watch(ctx, options)
		if err == nil && begun {
			l.record.resumed()
		}
		begun = begun || err == nil
		return w, err
	}
	retry, err := watchtools.NewRetryWatcherWithContext(ctx, object.ResourceVersion, &cache.ListWatch{WatchFuncWithContext: begin})
	if err != nil {
		return nil, fmt.Errorf("a watch of the load: %w", err)
	}
	w := &watcher{retry: retry, seen: map[int]bool{}, changed: make(chan struct{})}
	l.done.Go(func() {
		for event := range retry.ResultChan() {
			if m, ok := event.Object.(*corev1.ConfigMap); ok {
				w.see(value(m))
			}
		}
		if ctx.Err() == nil {
			l.record.unresumed()
		}
	})
	return w, nil
}

func (w *watcher) stop() {
	w.retry.Stop()
	<-w.retry.Done()
}

func (w *watcher) see(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen[n] = true
	close(w.changed)
	w.changed = make(chan struct{})
}

// missing returns how many of the writes the watch has not seen.
func (w *watcher) missing(written []int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, i := range written {
		if !w.seen[i] {
			n++
		}
	}
	return n
}

// await returns when the watch has seen all of the writes, or ctx's error.
func (w *watcher) await(ctx context.Context, written []int) error {
	for {
		w.mu.Lock()
		changed := w.changed
		w.mu.Unlock()
		n := w.missing(written)
		if n == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("a watch has not seen %d writes: %w", n, ctx.Err())
		case <-changed:
		}
	}
}

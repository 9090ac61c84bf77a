// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"errors"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// runController runs a small controller until Close, or until the channel closes, over
// restarts of the API server. watch registers handlers, which put objects into the queue; sync handles one object
// and is called again, ever more slowly, while it fails.
func (c *Cluster) runController(until <-chan struct{}, factory informers.SharedInformerFactory,
	watch func(enqueue func(namespace, name string)) error,
	sync func(ctx context.Context, namespace, name string) error,
) error {
	queue := newQueue()
	err := watch(func(namespace, name string) { queue.Add(cache.NewObjectName(namespace, name)) })
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			item, shutdown := queue.Get()
			if shutdown {
				return
			}
			if err := sync(ctx, item.Namespace, item.Name); err != nil && ctx.Err() == nil {
				queue.AddRateLimited(item)
			} else {
				queue.Forget(item)
			}
			queue.Done(item)
		}
	}()
	go func() {
		select {
		case <-until:
			cancel()
			queue.ShutDown()
		case <-ctx.Done():
		}
	}()
	factory.Start(ctx.Done())
	stop := func() error {
		cancel()
		queue.ShutDown()
		factory.Shutdown()
		<-done
		return nil
	}
	if !c.onClose(stop) {
		return errors.Join(errClosed, stop())
	}
	return nil
}

func newQueue() workqueue.TypedRateLimitingInterface[cache.ObjectName] {
	return workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[cache.ObjectName](pollInterval, time.Second))
}

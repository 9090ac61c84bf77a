// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

const (
	// killedStatus is the exit status of a container that got SIGKILL.
	killedStatus = 137
	// unknownEnd is the reason that the kubelet gives when the container was removed before
	// it saw how it ended. The status is made up then.
	unknownEnd = "ContainerStatusUnknown"
)

// exits notices containers of a namespace that end with another status than 0, that are
// restarted, or whose liveness probes fail, and has their logs kept. A Deployment, a
// StatefulSet or a kubelet puts another in the place of what has ended, so nothing else
// would tell.
type exits struct {
	pods cache.SharedIndexInformer
	logs *podLogs
	ctx  context.Context //nolint:containedctx // of what follows the pods, until stop
	stop context.CancelFunc

	mu     sync.Mutex
	killed map[string]bool   // IDs of containers that the test has killed
	failed map[string]string // ID of a container, or of an event -> what happened
}

// watchExits notices from now on.
func (s *Suite) watchExits(namespace string) (*exits, error) {
	logs, err := newPodLogs(s.Kube, namespace)
	if err != nil {
		return nil, err
	}
	// Not the test's own context, which ends before what the test has made does.
	ctx, stop := context.WithCancel(context.Background())
	factory := informers.NewSharedInformerFactoryWithOptions(s.Kube, 0, informers.WithNamespace(namespace))
	e := &exits{pods: factory.Core().V1().Pods().Informer(), logs: logs, ctx: ctx, stop: stop, killed: map[string]bool{}, failed: map[string]string{}}
	_, err = e.pods.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    e.see,
		UpdateFunc: func(_, object any) { e.see(object) },
		DeleteFunc: e.see,
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("watching pods of %s: %w", namespace, err)
	}
	_, err = factory.Core().V1().Events().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: e.seeEvent})
	if err != nil {
		stop()
		return nil, fmt.Errorf("watching events of %s: %w", namespace, err)
	}
	factory.Start(ctx.Done())
	return e, nil
}

// see notes the containers of a pod that have failed.
func (e *exits) see(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	e.logs.follow(e.ctx, pod)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range pod.Status.ContainerStatuses {
		e.seeEnd(pod, c.Name, c.State.Terminated, false)
		e.seeEnd(pod, c.Name, c.LastTerminationState.Terminated, true)
	}
}

// seeEnd notes the end of a container, if it has one, and has not ended well or another has
// been started in its place.
func (e *exits) seeEnd(pod *corev1.Pod, name string, end *corev1.ContainerStateTerminated, restarted bool) {
	if end == nil || end.Reason == unknownEnd || end.ExitCode == 0 && !restarted {
		return
	}
	if e.killed[end.ContainerID] && end.ExitCode == killedStatus {
		return
	}
	e.failed[end.ContainerID] = fmt.Sprintf("container %s of pod %s ended with status %d (%s); restarted: %t", name, pod.Name, end.ExitCode, end.Reason, restarted)
}

// seeEvent notes a liveness probe that got an answer, but no good one, or that could not
// even ask. One that got none is left out: the machine can be busy.
func (e *exits) seeEvent(object any) {
	event, ok := object.(*corev1.Event)
	if !ok || event.Reason != "Unhealthy" ||
		!strings.HasPrefix(event.Message, "Liveness probe failed: HTTP probe failed") && !strings.HasPrefix(event.Message, "Liveness probe errored") {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failed[string(event.UID)] = fmt.Sprintf("pod %s: %s", event.InvolvedObject.Name, event.Message)
}

// expectKill says that the container with this ID is about to be killed.
func (e *exits) expectKill(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.killed[id] = true
}

// check fails the test if a container has failed. The namespace is gone by then: it waits
// until that has been seen.
func (e *exits) check(t *testing.T) {
	t.Helper()
	defer e.logs.all.Wait()
	defer e.stop()
	err := wait.PollUntilContextTimeout(context.Background(), 50*time.Millisecond, *patience, true, func(context.Context) (bool, error) {
		return e.pods.HasSynced() && len(e.pods.GetStore().ListKeys()) == 0, nil
	})
	if err != nil {
		t.Errorf("pods are still there: %v: %v", e.pods.GetStore().ListKeys(), err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var failed []string
	for _, how := range e.failed {
		failed = append(failed, how)
	}
	slices.Sort(failed)
	if len(failed) > 0 {
		t.Errorf("containers have failed, or were restarted:\n%s", strings.Join(failed, "\n"))
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/internal/tailnet"
	testtailnet "github.com/tailhelm/tailhelm/test/tailnet"
)

// kubelet plays the replicas of the groups in a world: for each Pod it logs a real
// device in with the auth key that it finds, tells so in the state Secret, and makes
// the Pod ready when no check fails.
type kubelet struct {
	w      *world
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	played  map[types.UID]bool
	devices map[string]*testtailnet.Device // by ID
	checks  map[string]string              // that all replicas report; empty: ready
	refuse  map[string]bool                // auth keys that are to be refused
}

func startKubelet(w *world) *kubelet {
	ctx, cancel := context.WithCancel(context.Background())
	k := &kubelet{
		w: w, cancel: cancel, done: make(chan struct{}), played: map[types.UID]bool{},
		devices: map[string]*testtailnet.Device{}, refuse: map[string]bool{},
	}
	go func() {
		defer close(k.done)
		wait.UntilWithContext(ctx, k.look, 50*time.Millisecond)
	}()
	return k
}

func (k *kubelet) stop() {
	k.cancel()
	<-k.done
	for _, d := range k.devices {
		if err := d.Close(); err != nil {
			k.w.t.Log(err)
		}
	}
}

// report makes all replicas report these checks as failing; nil: they are ready.
func (k *kubelet) report(checks map[string]string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.checks = checks
	clear(k.played)
}

// forget makes the next pod of a device log in anew.
func (k *kubelet) forget(device string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.devices, device)
}

// look plays what has not been played.
func (k *kubelet) look(ctx context.Context) {
	var pods corev1.PodList
	if err := k.w.client.List(ctx, &pods, client.InNamespace(k.w.namespace), client.MatchingLabels{labelManaged: "true"}); err != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.DeletionTimestamp != nil || k.played[pod.UID] {
			continue
		}
		if err := k.play(ctx, pod); err == nil {
			k.played[pod.UID] = true
		} else if !errors.Is(err, errNotYet) && ctx.Err() == nil {
			k.w.t.Logf("playing %s: %v", pod.Name, err)
		}
	}
}

// errNotYet says that a replica waits for an auth key.
var errNotYet = errors.New("no auth key yet")

func (k *kubelet) play(ctx context.Context, pod *corev1.Pod) error {
	state, config := &corev1.Secret{}, &corev1.Secret{}
	if err := k.w.client.Get(ctx, types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, state); err != nil {
		return err
	}
	if err := k.w.client.Get(ctx, types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name + "-config"}, config); err != nil {
		return err
	}
	changes := map[string]any{}
	if k.devices[string(state.Data[tailnet.FieldDeviceID])] == nil || state.Data[tailnet.FieldReissue] != nil {
		key := string(config.Data[tailnet.FieldAuthKey])
		if key == "" || k.refuse[key] {
			return errors.Join(errNotYet, k.patch(ctx, state, map[string]any{tailnet.FieldReissue: key, tailnet.FieldPodUID: string(pod.UID)}))
		}
		k.refuse[key] = true // it is for one login
		if err := k.w.tailnet.RevokeKey(key); err != nil {
			return err
		}
		device, err := k.w.tailnet.Device(ctx, pod.Name, testtailnet.Identity{Tags: []string{tagK8s}})
		if err != nil {
			return err
		}
		list, err := k.w.admin.Devices().List(ctx)
		if err != nil {
			return err
		}
		for _, d := range list {
			if k.devices[d.NodeID] == nil && strings.HasPrefix(d.Name, device.Name()+".") {
				k.devices[d.NodeID] = device
				ips, err := json.Marshal(d.Addresses)
				if err != nil {
					return err
				}
				changes[tailnet.FieldDeviceID], changes[tailnet.FieldDeviceFQDN], changes[tailnet.FieldDeviceIPs] = d.NodeID, d.Name, string(ips)
			}
		}
	}
	checks := k.checks
	if checks == nil {
		checks = map[string]string{}
	}
	encoded, err := json.Marshal(checks)
	if err != nil {
		return err
	}
	changes[tailnet.FieldPodUID], changes[tailnet.FieldChecks] = string(pod.UID), string(encoded)
	if err := k.patch(ctx, state, changes); err != nil {
		return err
	}
	status := corev1.ConditionFalse
	if len(checks) == 0 {
		status = corev1.ConditionTrue
	}
	base := pod.DeepCopy()
	pod.Status.Phase = corev1.PodRunning
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.Now()}}
	return k.w.client.Status().Patch(ctx, pod, client.MergeFrom(base))
}

// patch writes keys of a Secret.
func (k *kubelet) patch(ctx context.Context, secret *corev1.Secret, data map[string]any) error {
	patch, err := json.Marshal(map[string]any{"stringData": data})
	if err != nil {
		return fmt.Errorf("encoding: %w", err)
	}
	return k.w.client.Patch(ctx, secret, client.RawPatch(types.MergePatchType, patch))
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// work brings pods in line with the API, one after the other, until Close.
func (k *Kubelet) work() {
	for {
		key, shutdown := k.queue.Get()
		if shutdown {
			return
		}
		if err := k.sync(k.life, key); err != nil && k.life.Err() == nil {
			k.options.Logger.Warn("sync pod", "pod", key, "error", err)
			k.queue.AddRateLimited(key)
		} else {
			k.queue.Forget(key)
		}
		k.queue.Done(key)
	}
}

// sync brings the pods of that name in line with the API: there may be an old one and
// a new one.
func (k *Kubelet) sync(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return err
	}
	obj, err := k.lister.Pods(namespace).Get(name)
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	var uid types.UID
	if err == nil && obj.DeletionTimestamp == nil {
		uid = obj.UID
	}
	if err := k.killOthers(namespace, name, uid); err != nil {
		return err
	}
	switch {
	case err != nil:
		return nil
	case uid == "":
		return k.confirmDeletion(ctx, obj)
	default:
		return k.run(ctx, obj)
	}
}

// killOthers ends the pods of that name that have another UID.
func (k *Kubelet) killOthers(namespace, name string, uid types.UID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for _, p := range k.pods {
		if p.namespace != namespace || p.name != name || p.uid == uid {
			continue
		}
		if err := p.kill(); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(k.pods, p.uid)
	}
	return errors.Join(errs...)
}

// confirmDeletion tells the API server that the processes are gone.
func (k *Kubelet) confirmDeletion(ctx context.Context, obj *corev1.Pod) error {
	now := int64(0)
	err := k.client.CoreV1().Pods(obj.Namespace).Delete(ctx, obj.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &now,
		Preconditions:      metav1.NewUIDPreconditions(string(obj.UID)),
	})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// run starts what the Pod has and does not yet run, and reports its status.
func (k *Kubelet) run(ctx context.Context, obj *corev1.Pod) error {
	containers, err := k.startContainers(obj)
	if err != nil || containers == nil {
		return err
	}
	updated := obj.DeepCopy()
	updated.Status = status(obj, containers)
	if equality.Semantic.DeepEqual(obj.Status, updated.Status) {
		return nil
	}
	_, err = k.client.CoreV1().Pods(obj.Namespace).UpdateStatus(ctx, updated, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) {
		// What this was based on is old: the newer Pod is on its way and gets queued.
		return nil
	}
	if err != nil {
		return fmt.Errorf("report status: %w", err)
	}
	return nil
}

// startContainers returns the containers of the Pod, all of which have been started.
// It returns nil for a Pod that ran to its end under an earlier kubelet.
func (k *Kubelet) startContainers(obj *corev1.Pod) (map[string]*container, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.pods[obj.UID]
	if p == nil {
		if obj.Status.Phase == corev1.PodSucceeded || obj.Status.Phase == corev1.PodFailed {
			return nil, nil
		}
		var err error
		if p, err = k.newPod(obj); err != nil {
			return nil, err
		}
		k.pods[obj.UID] = p
	}
	changed := func() { k.queue.Add(obj.Namespace + "/" + obj.Name) }
	all := make(map[string]*container)
	for _, spec := range specs(obj) {
		if p.containers[spec.Name] == nil {
			p.containers[spec.Name] = startContainer(p, spec, changed)
		}
		all[spec.Name] = p.containers[spec.Name]
	}
	return all, nil
}

// specs are the containers of the Pod, in the one form that all kinds share.
func specs(obj *corev1.Pod) []corev1.EphemeralContainerCommon {
	var all []corev1.EphemeralContainerCommon
	for _, c := range obj.Spec.Containers {
		all = append(all, corev1.EphemeralContainerCommon(c))
	}
	for _, c := range obj.Spec.EphemeralContainers {
		all = append(all, c.EphemeralContainerCommon)
	}
	return all
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// startScheduler binds each Pod that has no node to that of the kubelet, as long as it
// runs.
func (c *Cluster) startScheduler(k *Kubelet) error {
	node := k.Name()
	config, err := c.UserConfig("scheduler-"+node, "system:kube-scheduler")
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	unbound := informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = "spec.nodeName=" })
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, unbound)
	informer := factory.Core().V1().Pods().Informer()
	return c.runController(k.Done(), factory, func(enqueue func(namespace, name string)) error {
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(obj any) {
			if pod, ok := obj.(*corev1.Pod); ok && pod.DeletionTimestamp == nil {
				enqueue(pod.Namespace, pod.Name)
			}
		}})
		return err
	}, func(ctx context.Context, namespace, name string) error {
		err := client.CoreV1().Pods(namespace).Bind(ctx, &corev1.Binding{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Target:     corev1.ObjectReference{Kind: "Node", Name: node},
		}, metav1.CreateOptions{})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil // Gone, or bound by another.
		}
		return err
	})
}

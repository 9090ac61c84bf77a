// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// startNamespaces gives each namespace, present and future, what Pods in it need and
// what kube-controller-manager would make: the ServiceAccount default and the
// ConfigMap kube-root-ca.crt. It runs until Close, over restarts of the API server.
func (c *Cluster) startNamespaces() error {
	config, err := c.UserConfig("namespaces", "tailhelm-test:namespaces", "system:masters")
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	informer := factory.Core().V1().Namespaces().Informer()
	return c.runController(nil, factory, func(enqueue func(namespace, name string)) error {
		_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(obj any) {
			if ns, ok := obj.(*corev1.Namespace); ok && ns.DeletionTimestamp == nil {
				enqueue("", ns.Name)
			}
		}})
		return err
	}, func(ctx context.Context, _, name string) error { return c.furnish(ctx, client, name) })
}

// furnish makes the objects of one namespace. A namespace that is gone is fine.
func (c *Cluster) furnish(ctx context.Context, client kubernetes.Interface, namespace string) error {
	_, err := client.CoreV1().ServiceAccounts(namespace).Create(ctx,
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	if err != nil && !settled(err) {
		return err
	}
	_, err = client.CoreV1().ConfigMaps(namespace).Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "kube-root-ca.crt"},
		Data:       map[string]string{"ca.crt": string(c.ca.pem)},
	}, metav1.CreateOptions{})
	if err != nil && !settled(err) {
		return err
	}
	return nil
}

// settled reports whether trying again would not help: the object is there, or the
// namespace is gone or going.
func settled(err error) bool {
	return apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) ||
		apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

// waitForServiceAccount waits until a ServiceAccount exists: before that, Pods that
// use it are refused.
func (c *Cluster) waitForServiceAccount(ctx context.Context, namespace, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not there in %v", startTimeout))
	defer cancel()
	err := wait.PollUntilContextCancel(ctx, pollInterval, true, func(ctx context.Context) (bool, error) {
		_, err := c.client.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
		return err == nil, nil
	})
	if err == nil {
		return nil
	}
	err = fmt.Errorf("ServiceAccount %s/%s: %w", namespace, name, context.Cause(ctx))
	if c.controller != nil {
		err = c.controller.Failure(err)
	}
	return err
}

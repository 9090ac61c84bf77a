// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
)

// Work is the namespace that clients work in, Pod the pod there that they exec into, and
// Kept a ConfigMap that nobody may lose.
const (
	Work = "work"
	Pod  = "web"
	Kept = "kept"
)

// ServiceAccounts of the namespace Work, for clients that bring their own credentials.
// They may do what Alice, the machine and Bob may.
const (
	OperateAccount = "operate"
	ViewAccount    = "view"
	NobodyAccount  = "nobody"
)

// prepareCluster makes what clients work with, and the RBAC that decides what each may.
func (s *Suite) prepareCluster(ctx context.Context) error {
	if err := s.waitNodes(ctx); err != nil {
		return err
	}
	if err := s.connectNodes(ctx); err != nil {
		return err
	}
	list, err := s.Kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i, node := range list.Items {
		zone := fmt.Sprintf(`{"metadata": {"labels": {"topology.kubernetes.io/zone": "zone-%d"}}}`, i)
		if _, err := s.Kube.CoreV1().Nodes().Patch(ctx, node.Name, types.MergePatchType, []byte(zone), metav1.PatchOptions{}); err != nil {
			return err
		}
	}
	for _, make := range []func(context.Context) error{s.makeNamespace, s.makeAccounts, s.makeRBAC, s.makeConfigMap, s.makePod} {
		if err := make(ctx); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return s.waitPod(ctx, Work, Pod)
}

func (s *Suite) makeNamespace(ctx context.Context) error {
	_, err := s.Kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: Work}}, metav1.CreateOptions{})
	return err
}

func (s *Suite) makeAccounts(ctx context.Context) error {
	for _, name := range []string{OperateAccount, ViewAccount, NobodyAccount} {
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := s.Kube.CoreV1().ServiceAccounts(Work).Create(ctx, account, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}

// makeRBAC lets Admins do everything with pods and ConfigMaps, and the machine look at
// them.
func (s *Suite) makeRBAC(ctx context.Context) error {
	rbac := s.Kube.RbacV1()
	role := &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: OperateAccount},
		Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{""}, Verbs: []string{"*"},
			Resources: []string{"configmaps", "pods", "pods/attach", "pods/ephemeralcontainers", "pods/exec", "pods/log", "pods/portforward"},
		}},
	}
	if _, err := rbac.Roles(Work).Create(ctx, role, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	bindings := []*rbacv1.RoleBinding{
		binding(rbacv1.RoleRef{Kind: "Role", Name: OperateAccount}, Admins, OperateAccount),
		binding(rbacv1.RoleRef{Kind: "ClusterRole", Name: "view"}, Machine, ViewAccount),
	}
	for _, b := range bindings {
		if _, err := rbac.RoleBindings(Work).Create(ctx, b, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return nil
}

// binding binds a role to a group and to a ServiceAccount.
func binding(role rbacv1.RoleRef, group, account string) *rbacv1.RoleBinding {
	role.APIGroup = rbacv1.GroupName
	return &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: account}, RoleRef: role,
		Subjects: []rbacv1.Subject{
			{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: group},
			{Kind: rbacv1.ServiceAccountKind, Namespace: Work, Name: account},
		},
	}
}

func (s *Suite) makeConfigMap(ctx context.Context) error {
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: Kept}}
	_, err := s.Kube.CoreV1().ConfigMaps(Work).Create(ctx, m, metav1.CreateOptions{})
	return err
}

func (s *Suite) makePod(ctx context.Context) error {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: Pod},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64),
			// Not on the node that a test drains.
			NodeSelector: map[string]string{"node-role.kubernetes.io/control-plane": ""},
			Containers:   []corev1.Container{{Name: "main", Image: WorkloadImage, ImagePullPolicy: corev1.PullNever, Stdin: true}},
		},
	}
	// A pod that an earlier run used has its ephemeral containers, by the same names.
	now := metav1.DeleteOptions{GracePeriodSeconds: new(int64)}
	if err := s.Kube.CoreV1().Pods(Work).Delete(ctx, Pod, now); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, *patience, true, func(ctx context.Context) (bool, error) {
		_, err := s.Kube.CoreV1().Pods(Work).Create(ctx, pod, metav1.CreateOptions{})
		return err == nil, nil
	})
}

// waitPod waits until a pod is ready.
func (s *Suite) waitPod(ctx context.Context, namespace, name string) error {
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, *patience, true, func(ctx context.Context) (bool, error) {
		pod, err := s.Kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
		return err == nil && podReady(pod), nil
	})
	if err != nil {
		return fmt.Errorf("waiting for pod %s/%s: %w", namespace, name, err)
	}
	return nil
}

func podReady(pod *corev1.Pod) bool {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil
		}
	}
	return false
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tailhelm/tailhelm/test/kubernetes"
	"github.com/tailhelm/tailhelm/test/tailhelm"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

const (
	// system is the namespace of what a proxy needs in a cluster.
	system = "tailhelm-system"
	// impersonator is the ServiceAccount with whose tokens callers are impersonated.
	impersonator = "impersonator"
	// impersonatorUser is its name to the API server.
	impersonatorUser = "system:serviceaccount:" + system + ":" + impersonator

	// admins is a group that may do everything.
	admins = "integration-admins"

	// patience bounds what should take seconds, on a machine that does much else.
	patience = 3 * time.Minute
	// revocationPromise is how soon an open request ends whose caller lost a right.
	revocationPromise = 5 * time.Second
)

// shared is what tests share. See the package's documentation.
var shared struct {
	program string // tailhelm, with the race detector
	tailnet *tailnet.Tailnet
	cluster *kubernetes.Cluster
	// impersonator is a kubeconfig with the token of the impersonator.
	impersonator string
	// proxy is in mode auth.
	proxy *proxy
}

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) (code int) {
	ctx := context.Background()
	stop, err := start(ctx)
	defer func() {
		if err := stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stopping what the tests share:", err)
			code = 1
		}
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "starting what the tests share:", err)
		return 1
	}
	return m.Run()
}

// start makes what is shared. stop ends it, in the state in which it is.
func start(ctx context.Context) (stop func() error, err error) {
	var stops []func() error
	stop = func() error {
		var errs []error
		for i := len(stops) - 1; i >= 0; i-- {
			errs = append(errs, stops[i]())
		}
		return errors.Join(errs...)
	}
	dir, err := os.MkdirTemp("", "tailhelm-integration-")
	if err != nil {
		return stop, err
	}
	stops = append(stops, func() error { return os.RemoveAll(dir) })
	if shared.program, err = tailhelm.Build(ctx, dir, true); err != nil {
		return stop, err
	}
	if shared.cluster, err = kubernetes.Start(ctx, kubernetes.Options{}); err != nil {
		return stop, err
	}
	stops = append(stops, shared.cluster.Close)
	if shared.impersonator, err = installImpersonator(ctx, shared.cluster); err != nil {
		return stop, err
	}
	if shared.tailnet, err = tailnet.Start(ctx, tailnet.Options{}); err != nil {
		return stop, err
	}
	stops = append(stops, shared.tailnet.Close)
	// The process is stopped before the test binary ends, so that a data race in
	// it fails the run.
	shared.proxy, err = startProxy(ctx, proxyOptions{hostname: "kube", dir: dir})
	if err != nil {
		return stop, err
	}
	stops = append(stops, func() error { return shared.proxy.stop(ctx) })
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return stop, shared.proxy.WaitReady(waiting)
}

// installImpersonator makes the ServiceAccount with which a proxy impersonates, as
// a user of "tailhelm proxy" does, and returns a kubeconfig for it.
func installImpersonator(ctx context.Context, c *kubernetes.Cluster) (kubeconfig string, err error) {
	name := metav1.ObjectMeta{Name: impersonator}
	_, err = c.Client().CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: system}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	_, err = c.Client().CoreV1().ServiceAccounts(system).Create(ctx, &corev1.ServiceAccount{ObjectMeta: name}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	_, err = c.Client().RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: name, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"users", "groups"}, Verbs: []string{"impersonate"}},
	}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	_, err = c.Client().RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: name,
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: system, Name: impersonator}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: impersonator},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	_, err = c.Client().RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: admins},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: admins}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	token, err := c.ServiceAccountToken(ctx, system, impersonator)
	if err != nil {
		return "", err
	}
	return c.KubeconfigFor(impersonator, c.TokenConfig(token))
}

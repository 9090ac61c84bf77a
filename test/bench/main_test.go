// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
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
	// system is the namespace of the ServiceAccounts.
	system = "tailhelm-system"
	// impersonator is the ServiceAccount with whose tokens tailhelm impersonates, and client
	// the one of those who do without tailhelm.
	impersonator, client = "impersonator", "client"
	// admins is a group that may do everything.
	admins = "bench-admins"
	// login is the user of the client's device.
	login = "user@example.com"
	// proxyTag tags the devices in the middle.
	proxyTag = "tag:k8s"

	// patience bounds what should take seconds.
	patience = 3 * time.Minute
)

// stage is what all benchmarks share.
type stage struct {
	dir                   string
	tailhelm, passthrough string // programs
	cluster               *kubernetes.Cluster
	tailnet               *tailnet.Tailnet
	device                *tailnet.Device // the client's
	token                 string          // of the ServiceAccount client
	kubeconfig            string          // of the impersonator
	direct                *way
	floor, proxy          *way

	names   int    // that unique has given
	touched string // what was last written to the small ConfigMap
	stops   []func() error
}

// shared is made by the first benchmark that runs, so that a run of the tests costs nothing.
var (
	shared = &stage{}
	start  = sync.OnceValue(func() error { return shared.start(context.Background()) })
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := shared.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stopping what the benchmarks share:", err)
		code = 1
	}
	os.Exit(code)
}

// setUp returns what all benchmarks share, and a context for the benchmark that ends when
// one of the processes does.
func setUp(b *testing.B) (context.Context, *stage) {
	b.Helper()
	if err := start(); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := shared.floor.watched(b.Context())
	b.Cleanup(cancel)
	ctx, cancel = shared.proxy.watched(ctx)
	b.Cleanup(cancel)
	return ctx, shared
}

// start makes the stage. What it has made by an error is stopped by stop.
func (s *stage) start(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute) // programs may have to be built
	defer cancel()
	if s.dir, err = os.MkdirTemp("", "tailhelm-bench-"); err != nil {
		return err
	}
	s.stops = append(s.stops, func() error { return os.RemoveAll(s.dir) })
	if err := s.build(ctx); err != nil {
		return err
	}
	if err := s.startCluster(ctx); err != nil {
		return err
	}
	if s.tailnet, err = tailnet.Start(ctx, tailnet.Options{}); err != nil {
		return err
	}
	s.stops = append(s.stops, s.tailnet.Close)
	if err := s.tailnet.SetGrants(tailnet.KubernetesGrant(login, proxyTag, admins)); err != nil {
		return err
	}
	// Before the others, for them to know it from their start.
	if s.device, err = s.tailnet.Device(ctx, "client", tailnet.Identity{Login: login}); err != nil {
		return err
	}
	s.direct = s.directly()
	if s.floor, err = s.startFloor(ctx); err != nil {
		return err
	}
	s.stops = append(s.stops, s.floor.stop)
	if s.proxy, err = s.startProxy(ctx); err != nil {
		return err
	}
	s.stops = append(s.stops, s.proxy.stop)
	return nil
}

// stop ends what start has started.
func (s *stage) stop() error {
	var errs []error
	for i := len(s.stops) - 1; i >= 0; i-- {
		errs = append(errs, s.stops[i]())
	}
	return errors.Join(errs...)
}

// unique returns a name that nothing else has.
func (s *stage) unique(prefix string) string {
	s.names++
	return fmt.Sprintf("%s-%d", prefix, s.names)
}

// build builds the programs in the middle, as they are released.
func (s *stage) build(ctx context.Context) (err error) {
	if s.tailhelm, err = tailhelm.Build(ctx, s.dir, false); err != nil {
		return err
	}
	s.passthrough = filepath.Join(s.dir, "passthrough")
	if out, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", s.passthrough, "./passthrough").CombinedOutput(); err != nil {
		return fmt.Errorf("building passthrough: %w\n%s", err, out)
	}
	return nil
}

// startCluster starts the API server and makes accounts and objects.
func (s *stage) startCluster(ctx context.Context) (err error) {
	// It would give the users of the ways different shares.
	options := kubernetes.Options{APIServerFlags: []string{"--enable-priority-and-fairness=false"}}
	if s.cluster, err = kubernetes.Start(ctx, options); err != nil {
		return err
	}
	s.stops = append(s.stops, s.cluster.Close)
	for _, namespace := range []string{system, objects} {
		object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
		_, err := s.cluster.Client().CoreV1().Namespaces().Create(ctx, object, metav1.CreateOptions{})
		if err != nil {
			return err
		}
	}
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: impersonator}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"users", "groups"}, Verbs: []string{"impersonate"}},
	}}
	if _, err := s.cluster.Client().RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil {
		return err
	}
	if err := s.bind(ctx, "cluster-admin", rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: admins}); err != nil {
		return err
	}
	if s.token, err = s.account(ctx, client, "cluster-admin"); err != nil {
		return err
	}
	token, err := s.account(ctx, impersonator, impersonator)
	if err != nil {
		return err
	}
	if s.kubeconfig, err = s.cluster.KubeconfigFor(impersonator, s.cluster.TokenConfig(token)); err != nil {
		return err
	}
	return s.makeObjects(ctx)
}

// account makes a ServiceAccount with a role and returns a token of it.
func (s *stage) account(ctx context.Context, name, role string) (token string, err error) {
	object := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := s.cluster.Client().CoreV1().ServiceAccounts(system).Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return "", err
	}
	if err := s.bind(ctx, role, rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: system, Name: name}); err != nil {
		return "", err
	}
	return s.cluster.ServiceAccountToken(ctx, system, name)
}

// bind gives the rules of a ClusterRole to a subject.
func (s *stage) bind(ctx context.Context, role string, subject rbacv1.Subject) error {
	_, err := s.cluster.Client().RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "bench-"},
		Subjects:   []rbacv1.Subject{subject},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
	}, metav1.CreateOptions{})
	return err
}

const (
	// objects is the namespace of the ConfigMaps, and small the name of a small one.
	objects, small = "bench", "small"
	// The large list is 40 ConfigMaps of 512 KiB, below the 1 MiB that one may have.
	large, largeSize = 40, 512 << 10
	largeLabel       = "size=large"
)

// makeObjects makes the ConfigMaps.
func (s *stage) makeObjects(ctx context.Context) error {
	maps := s.cluster.Client().CoreV1().ConfigMaps(objects)
	_, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: small}, Data: map[string]string{"key": "value"}}, metav1.CreateOptions{})
	for i := 0; i < large && err == nil; i++ {
		_, err = maps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("large-%02d", i), Labels: map[string]string{"size": "large"}},
			Data:       map[string]string{"key": strings.Repeat("x", largeSize)},
		}, metav1.CreateOptions{})
	}
	return err
}

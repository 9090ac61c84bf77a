// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
)

// Requests that the controllers may make to the API server. A pass makes some twenty.
const (
	requestsPerSecond = 50
	requestsBurst     = 100
)

// Controllers are the operator's controllers.
type Controllers struct {
	config Config

	mu      sync.Mutex
	stopped error // why they stopped the last time, until they work again, or nil
	waiting error // what they wait for, or nil
}

// proven is how long controllers must run before they count as working: those that lack a
// right stop when their caches have not filled for two minutes.
const proven = 3 * time.Minute

// New returns controllers that do not run yet.
func New(config Config) *Controllers {
	if config.timing == (timing{}) {
		config.timing = usual
	}
	return &Controllers{config: config}
}

// Warning returns nil, or why the controllers do not work. Those that wait for another
// operator to give up the Lease are well.
func (c *Controllers) Warning(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return cmp.Or(c.waiting, c.stopped)
}

// APIWarning returns nil, or why the Tailscale API cannot be used, as the last call showed.
func (c *Controllers) APIWarning(ctx context.Context) error {
	if c.config.API == nil {
		return nil // there is an auth key; who wants more is told by the conditions of that
	}
	return c.config.API.Warning(ctx)
}

// setStopped notes why the controllers stopped, or that they work.
func (c *Controllers) setStopped(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = why
}

// setWaiting notes what the controllers wait for, or that they wait for nothing.
func (c *Controllers) setWaiting(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = why
}

// Run runs the controllers until ctx is done. Whatever fails (the API server, the
// definitions of our kinds, the leader's Lease) is logged and tried again.
func (c *Controllers) Run(ctx context.Context) {
	backoff := wait.Backoff{Duration: time.Second, Factor: 2, Jitter: 0.1, Steps: 7, Cap: time.Minute}
	next := backoff
	for ctx.Err() == nil {
		begin := time.Now()
		if err := c.run(ctx); err != nil && ctx.Err() == nil {
			c.setStopped(fmt.Errorf("the controllers stopped, and start again: %w", err))
			c.config.Log.ErrorContext(ctx, "the controllers stopped, and start again", "error", err)
		}
		if time.Since(begin) > time.Minute {
			next = backoff
		}
		select {
		case <-ctx.Done():
		case <-time.After(next.Step()):
		}
	}
}

// scheme returns the types that the controllers know.
func scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	return s, errors.Join(clientgoscheme.AddToScheme(s), v1alpha1.AddToScheme(s))
}

// run runs the controllers once.
func (c *Controllers) run(ctx context.Context) error {
	log := c.config.Log
	config := rest.CopyConfig(c.config.Cluster)
	config.QPS, config.Burst = requestsPerSecond, requestsBurst
	s, err := scheme()
	if err != nil {
		return fmt.Errorf("the controllers' types: %w", err)
	}
	direct, err := client.New(config, client.Options{Scheme: s})
	if err != nil {
		return fmt.Errorf("a client for the API server: %w", err)
	}
	if c.config.InstallCRDs {
		if err := InstallCRDs(ctx, direct, types.NamespacedName{Namespace: c.config.Namespace, Name: c.config.Release}, log); err != nil {
			log.WarnContext(ctx, "the CustomResourceDefinitions could not be brought up to date", "error", err)
		}
	}
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return fmt.Errorf("a client for the API server: %w", err)
	}
	if err := waitForKinds(ctx, d, c.waits, kindProxyGroup, kindProxyClass); err != nil {
		return err
	}
	c.setWaiting(nil)
	missing, err := missingKinds(ctx, d, kindRecorder)
	if err != nil {
		return fmt.Errorf("looking for the kind %s: %w", kindRecorder, err)
	}
	system := &corev1.Namespace{}
	if err := direct.Get(ctx, types.NamespacedName{Name: metav1.NamespaceSystem}, system); err != nil {
		return fmt.Errorf("reading the cluster's identity, the UID of its namespace %s: %w", metav1.NamespaceSystem, err)
	}
	manager, err := ctrl.NewManager(config, c.config.options(s))
	if err != nil {
		return fmt.Errorf("making the controllers: %w", err)
	}
	if err := c.config.setup(manager, string(system.UID), len(missing) == 0); err != nil {
		return fmt.Errorf("making the controllers: %w", err)
	}
	works := time.AfterFunc(proven, func() { c.setStopped(nil) })
	defer works.Stop()
	if len(missing) == 0 {
		return manager.Start(ctx)
	}
	// ProxyGroups do not wait for a definition that an older release did not have.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		defer stop()                                    // and all starts again
		_ = waitForKinds(ctx, d, c.lacks, kindRecorder) // ends with ctx
	}()
	return manager.Start(ctx)
}

// waits notes why the controllers wait.
func (c *Controllers) waits(ctx context.Context, why error) {
	c.setWaiting(fmt.Errorf("the controllers wait: %w", why))
	c.config.Log.WarnContext(ctx, "the controllers wait", "for", why)
}

// lacks notes why Recorders are not served.
func (c *Controllers) lacks(ctx context.Context, why error) {
	c.setWaiting(fmt.Errorf("the kind %s is not served: %w", kindRecorder, why))
	c.config.Log.WarnContext(ctx, "Recorders are not served", "why", why)
}

// options are those of the manager. It listens nowhere: the operator serves its
// metrics itself.
func (c Config) options(s *runtime.Scheme) ctrl.Options {
	ofKinds, err := labels.NewRequirement(labelParentType, selection.In, []string{proxyGroupKind.label, recorderKind.label})
	if err != nil {
		panic(err) // of constants
	}
	managed := cache.ByObject{Label: labels.SelectorFromSet(labels.Set{labelManaged: "true"}).Add(*ofKinds)}
	o := ctrl.Options{
		Scheme:                 s,
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: "0",
		Cache: cache.Options{
			DefaultNamespaces: map[string]cache.Config{c.Namespace: {}},
			ByObject: map[client.Object]cache.ByObject{
				&corev1.Secret{}: managed, &corev1.Pod{}: managed, &corev1.Service{}: managed,
				&rbacv1.Role{}: managed, &rbacv1.RoleBinding{}: managed,
				&appsv1.StatefulSet{}: managed, &policyv1.PodDisruptionBudget{}: managed,
			},
			DefaultTransform: cache.TransformStripManagedFields(),
		},
		// The controllers may be made more than once in a process.
		Controller: ctrlconfig.Controller{SkipNameValidation: ptr.To(true), MaxConcurrentReconciles: 4, ReconciliationTimeout: 5 * time.Minute},
	}
	if c.LeaderElectionID != "" {
		o.LeaderElection, o.LeaderElectionID, o.LeaderElectionNamespace = true, c.LeaderElectionID, c.Namespace
		// All controllers have stopped when the Lease is released.
		o.LeaderElectionReleaseOnCancel = true
	}
	return o
}

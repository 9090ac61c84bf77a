// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// Options configure a kubelet. Config, Certificate, ClientCAs, ClientName and Dir
// are needed.
type Options struct {
	// Name is the name of the Node.
	Name string
	// Labels are more labels of the Node.
	Labels map[string]string
	// Version is the kubelet version that the Node shows.
	Version string
	// Config is for the API server, as the user system:node:<Name> in system:nodes.
	Config *rest.Config
	// Certificate is for 127.0.0.1, from an authority that the API server trusts.
	Certificate tls.Certificate
	// ClientCAs and ClientName say which client certificate the API server shows:
	// by whom it is issued, and its common name. Nobody else is served.
	ClientCAs  *x509.CertPool
	ClientName string
	// Dir is an existing folder for the pods' folders.
	Dir string
	// Logger is told of what goes wrong. Default: nobody is.
	Logger *slog.Logger
}

// Kubelet is a running kubelet. Its methods may be called from several goroutines.
type Kubelet struct {
	options Options
	client  kubernetes.Interface
	lister  corelisters.PodLister
	queue   workqueue.TypedRateLimitingInterface[string]
	server  *http.Server
	conns   *trackedListener
	port    int32
	life    context.Context
	end     context.CancelFunc // of life
	group   sync.WaitGroup
	factory informers.SharedInformerFactory

	mu   sync.Mutex
	pods map[types.UID]*pod
}

// Start registers the Node and runs its Pods until Close. It returns when the Node is
// there and the kubelet serves; ctx bounds that alone.
func Start(ctx context.Context, o Options) (*Kubelet, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	client, err := kubernetes.NewForConfig(o.Config)
	if err != nil {
		return nil, fmt.Errorf("kubelet %s: %w", o.Name, err)
	}
	k := &Kubelet{
		options: o,
		client:  client,
		queue:   workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](10*time.Millisecond, time.Second)),
		pods:    make(map[types.UID]*pod),
	}
	k.life, k.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := k.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("kubelet %s: %w", o.Name, err), k.Close())
	}
	return k, nil
}

func (k *Kubelet) start(ctx context.Context) error {
	if err := k.serve(ctx); err != nil {
		return err
	}
	if err := k.register(ctx); err != nil {
		return err
	}
	k.factory = informers.NewSharedInformerFactoryWithOptions(k.client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		// All that a node is allowed to see.
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", k.options.Name).String()
	}))
	pods := k.factory.Core().V1().Pods()
	enqueue := func(obj any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
			k.queue.Add(key)
		}
	}
	k.lister = pods.Lister()
	_, err := pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: enqueue, UpdateFunc: func(_, obj any) { enqueue(obj) }, DeleteFunc: enqueue,
	})
	if err != nil {
		return err
	}
	k.factory.Start(k.life.Done())
	if !cache.WaitForCacheSync(ctx.Done(), pods.Informer().HasSynced) {
		return fmt.Errorf("list pods: %w", context.Cause(ctx))
	}
	k.group.Go(k.work)
	k.group.Go(k.heartbeat)
	return nil
}

// serve listens for the API server.
func (k *Kubelet) serve(ctx context.Context) error {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return fmt.Errorf("listen: no port in %v", l.Addr())
	}
	k.port = int32(addr.Port) //nolint:gosec // A port.
	k.conns = &trackedListener{Listener: l, conns: make(map[net.Conn]struct{})}
	k.server = &http.Server{
		Handler:           k.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(k.options.Logger.Handler(), slog.LevelWarn),
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{k.options.Certificate},
			ClientCAs:    k.options.ClientCAs,
			// Who shows none gets 401, in place of a failed handshake, as from a kubelet.
			ClientAuth: tls.VerifyClientCertIfGiven,
			MinVersion: tls.VersionTLS12,
		},
	}
	k.group.Go(func() {
		if err := k.server.ServeTLS(k.conns, "", ""); !errors.Is(err, http.ErrServerClosed) {
			k.options.Logger.Error("serve", "error", err)
		}
	})
	return nil
}

// Close kills all processes of all pods, closes their streams and stops serving. The
// Node and its Pods stay in the API, as when a machine is switched off.
func (k *Kubelet) Close() error {
	k.end()
	k.queue.ShutDown()
	if k.factory != nil {
		k.factory.Shutdown()
	}
	var errs []error
	if k.server != nil {
		errs = append(errs, k.server.Close())
	}
	k.group.Wait()
	k.mu.Lock()
	for uid, p := range k.pods {
		errs = append(errs, p.kill())
		delete(k.pods, uid)
	}
	k.mu.Unlock()
	if k.conns != nil {
		k.conns.closeAll()
	}
	return errors.Join(errs...)
}

// Name is the name of the Node.
func (k *Kubelet) Name() string { return k.options.Name }

// Done is closed when the kubelet stops.
func (k *Kubelet) Done() <-chan struct{} { return k.life.Done() }

// Port is the port of 127.0.0.1 on which the kubelet serves the API server.
func (k *Kubelet) Port() int { return int(k.port) }

// PodDir is the folder in which a Pod's processes start: the working directory of
// exec, and where relative paths of "kubectl cp" begin. It is gone with the Pod.
func (k *Kubelet) PodDir(uid types.UID) string {
	return filepath.Join(k.options.Dir, string(uid))
}

// find returns the running pod of that name, or nil.
func (k *Kubelet) find(namespace, name string) *pod {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.pods {
		if p.namespace == namespace && p.name == name {
			return p
		}
	}
	return nil
}

// container returns a container of the pod, or nil.
func (k *Kubelet) container(p *pod, name string) *container {
	k.mu.Lock()
	defer k.mu.Unlock()
	return p.containers[name]
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/tailhelm/tailhelm/internal/apiproxy"
	"github.com/tailhelm/tailhelm/internal/controller"
	"github.com/tailhelm/tailhelm/internal/health"
	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// Lifetimes of the answers of readiness checks that ask the API server.
const (
	reachableLifetime    = 5 * time.Second
	impersonatorLifetime = time.Minute
)

// certificates are a source of the server's certificate.
type certificates interface {
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Ready(context.Context) error
	Warning(context.Context) error
	Expiry() time.Time
	Run(context.Context) error
}

// service is one API server proxy on one device of a tailnet: everything that
// the commands operator and proxy have in common.
type service struct {
	options  serveOptions
	mode     apiproxy.Mode
	upstream *rest.Config
	// upstreamSetting is the setting that upstream comes from, and its value.
	upstreamSetting [2]string
	// refusedGroups are for apiproxy.Config.
	refusedGroups []string
	node          *tailnet.Node
	certs         certificates // nil: no TLS
	replica       *replica     // nil: the node serves on its own name
	// state is the Secret with the node's state, or nil when that is elsewhere, and
	// podUID the pod that this process is.
	state  *tailnet.SecretStore
	podUID string
	// controllers are those that run beside the proxy, or nil.
	controllers *controller.Controllers
	log         *slog.Logger

	proxy     *apiproxy.Proxy
	checks    []health.Check
	registry  *prometheus.Registry
	metrics   *apiproxy.Metrics
	listening atomic.Bool
	draining  atomic.Bool
}

// prepare makes the request path, or returns what is wrong with the way to the API
// server. It asks nobody.
func (s *service) prepare() (err error) {
	s.registry = newRegistry()
	s.metrics = apiproxy.NewMetrics(s.registry)
	s.proxy, err = apiproxy.New(apiproxy.Config{Mode: s.mode, Upstream: s.upstream, Peers: s.node, RefusedGroups: s.refusedGroups, Name: s.name, DialRecorder: s.node.Dial, Log: s.log, AccessLog: apiproxy.AccessLog(s.options.accessLog), FewerGroups: s.options.fewerGroups, Metrics: s.metrics})
	if err != nil {
		return badSetting(s.upstreamSetting[0], s.upstreamSetting[1], err.Error())
	}
	s.checks = s.newChecks()
	s.observe()
	return nil
}

// name returns the FQDN under which clients know the proxy.
func (s *service) name() string {
	if s.replica != nil {
		return s.replica.service.Name()
	}
	return s.node.Name()
}

// run serves until ctx is done, drains, and returns nil; or returns why it could
// not serve. prepare comes before it.
func (s *service) run(ctx context.Context) error {
	pod, err := new(net.ListenConfig).Listen(ctx, "tcp", s.options.metricsAddress)
	if err != nil {
		return badSetting("--metrics-address", s.options.metricsAddress, err.Error())
	}
	context.AfterFunc(ctx, func() { s.draining.Store(true) })
	// The node and everything about it live until the drain has ended.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	group, life := errgroup.WithContext(life)
	group.Go(func() error { return s.serveHealth(life, pod) })
	if err := s.node.Start(ctx); ctx.Err() != nil {
		return nil // told to end before there was anything to drain
	} else if err != nil {
		return err
	}
	defer func() { _ = s.node.Close() }() // the process ends; there is nothing to do about an error
	group.Go(func() error { return s.node.Run(life) })
	if s.certs != nil {
		group.Go(func() error { return s.certs.Run(life) })
	}
	if s.state != nil {
		group.Go(func() error {
			return s.node.Report(life, s.state, s.podUID, func(ctx context.Context) map[string]string { return health.Failing(ctx, s.checks...) })
		})
	}
	if s.replica != nil {
		group.Go(func() error { return s.replica.run(life, s.checks) })
	}
	group.Go(func() error {
		health.Log(life, s.log, s.checks...)
		return nil
	})
	group.Go(func() error {
		defer end()
		serving, stop := context.WithCancel(ctx)
		defer stop()
		context.AfterFunc(life, stop)
		return s.serveTailnet(serving)
	})
	return group.Wait()
}

// serveTailnet serves the proxy on the tailnet.
func (s *service) serveTailnet(ctx context.Context) error {
	config := apiproxy.ServerConfig{
		Proxy: s.proxy, DrainTimeout: s.options.drainTimeout, PeerConnections: s.options.peerConnections,
		Log: s.log, Metrics: s.metrics, Host: s.name,
	}
	listen := s.node.Listen
	if s.replica != nil {
		config.Withdraw, listen = s.replica.withdraw, s.replica.service.Listen
	}
	var secure net.Listener
	if s.certs != nil {
		config.TLS = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.certs.GetCertificate}
		if s.options.tls == tlsFile {
			config.Host = func() string { return "" } // the certificate may be for any name
		}
		l, err := listen(443)
		if err != nil {
			return err
		}
		secure = l
	}
	plain, err := listen(80)
	if err != nil {
		return err
	}
	s.listening.Store(true)
	s.log.InfoContext(ctx, "serving the Kubernetes API on the tailnet", "mode", s.mode, "tls", s.options.tls, "apiServer", s.upstream.Host)
	return apiproxy.NewServer(config).Serve(ctx, secure, plain)
}

// newChecks returns what must hold for the proxy to be ready.
func (s *service) newChecks() []health.Check {
	checks := []health.Check{
		{Name: health.CheckShutdown, Check: func(context.Context) error {
			if s.draining.Load() {
				return errors.New("shutting down")
			}
			return nil
		}},
		{Name: health.CheckTailnet, Check: s.node.Ready, Warn: s.node.Warning},
	}
	if s.certs != nil {
		checks = append(checks, health.Check{Name: health.CheckCertificate, Check: s.certs.Ready, Warn: s.certs.Warning})
	}
	checks = append(checks,
		health.Check{Name: health.CheckListening, Check: func(context.Context) error {
			if !s.listening.Load() {
				return errors.New("not listening on the tailnet yet")
			}
			return nil
		}},
		health.Cached(health.Check{Name: health.CheckAPIServer, Check: s.proxy.CheckReachable}, reachableLifetime))
	if s.mode == apiproxy.ModeAuth {
		checks = append(checks, health.Cached(health.Check{Name: health.CheckImpersonator, Check: func(ctx context.Context) error {
			return apiproxy.CheckImpersonator(ctx, s.upstream)
		}}, impersonatorLifetime))
	}
	if s.replica != nil {
		checks = append(checks, health.Check{Name: health.CheckService, Check: s.replica.service.Ready})
	} else {
		checks = append(checks, health.Check{Name: health.CheckName, Warn: s.node.NameWarning}) // kubeconfigs have it
	}
	return append(checks, controllerChecks(s.controllers)...)
}

// serveHealth serves /livez, /readyz and /metrics for the pod until ctx is done.
func (s *service) serveHealth(ctx context.Context, l net.Listener) error {
	var metrics prometheus.Gatherer = s.registry
	if s.controllers != nil {
		metrics = withControllers(metrics)
	}
	return serveHealth(ctx, s.log, l, metrics, s.checks...)
}

func serveHealth(ctx context.Context, log *slog.Logger, l net.Listener, metrics prometheus.Gatherer, checks ...health.Check) error {
	live, ready := health.Handler("livez", health.Check{Name: health.CheckPing}), health.Handler("readyz", checks...)
	mux := http.NewServeMux()
	mux.Handle("GET /livez", live)
	mux.Handle("GET /livez/{name}", live)
	mux.Handle("GET /readyz", ready)
	mux.Handle("GET /readyz/{name}", ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	log.InfoContext(ctx, "serving health and metrics", "address", l.Addr().String())
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving health and metrics: %w", err)
	}
	return nil
}

// newRegistry returns a registry with the metrics of the process.
func newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "tailhelm", Name: "build_info", Help: "1, with the version that is running.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), build)
	return registry
}

// observe registers the metrics of the node, its certificate, and whether all is well.
func (s *service) observe() {
	s.registry.MustRegister(health.NewCollector("tailhelm_ready", "1 while /readyz says that the proxy is ready.", s.checks...))
	s.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "tailhelm", Name: "tailnet_up", Help: "1 while the device is on the tailnet.",
	}, func() float64 {
		if s.node.Ready(context.Background()) != nil {
			return 0
		}
		return 1
	}))
	if s.certs == nil {
		return
	}
	s.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "tailhelm", Name: "certificate_expiry_timestamp_seconds", Help: "When the certificate ends, as a Unix time; 0 before there is one.",
	}, func() float64 {
		if at := s.certs.Expiry(); !at.IsZero() {
			return float64(at.Unix())
		}
		return 0
	}))
}

// routeLibraryLogs sends what Kubernetes libraries log to log.
func routeLibraryLogs(log *slog.Logger) {
	logger := logr.FromSlogHandler(withoutQueries{log.Handler()})
	klog.SetLogger(logger)
	ctrllog.SetLogger(logger)
}

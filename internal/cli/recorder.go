// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tailhelm/tailhelm/internal/health"
	"github.com/tailhelm/tailhelm/internal/recorder"
	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// recorderOptions are the flags of the command recorder.
type recorderOptions struct {
	dir            string
	hostname       string
	loginServer    string
	tags           []string
	from           []string
	authKeyFile    string
	stateDir       string
	metricsAddress string
	logLevel       string
	drainTimeout   time.Duration
	keep           time.Duration
	atLeast        time.Duration
	total          string
	recording      string
	free           string
	open           int
	pod            podOptions

	limits recorder.Limits
}

func newRecorder(env environment, logs io.Writer) *cobra.Command {
	return newRecorderCommand(&recorderOptions{}, env, logs)
}

func newRecorderCommand(o *recorderOptions, env environment, logs io.Writer) *cobra.Command {
	c := &cobra.Command{
		Use:   "recorder",
		Short: "Keep recordings of sessions that proxies of the tailnet send",
		Long: "Keep recordings of sessions that proxies of the tailnet send. It is the recorder that a grant of the\n" +
			"tailnet policy names by its tag. The recordings are asciicast files; list, play and cat show\n" +
			"them, and events shows the requests whose events proxies have sent.\n\n" +
			"With --state-secret it is a replica of a Recorder. The operator runs it with all the flags that this\n" +
			"needs; the environment variables POD_UID and POD_NAMESPACE complete them.",
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := o.service(env, logs)
			if err != nil {
				return err
			}
			return s.run(c.Context())
		},
	}
	c.PersistentFlags().StringVar(&o.dir, "dir", env("RECORDINGS_DIR"), "folder of the recordings, which exists (or RECORDINGS_DIR)")
	flags := c.Flags()
	flags.StringVar(&o.hostname, "hostname", "recorder", "name of the device on the tailnet")
	flags.StringVar(&o.loginServer, "login-server", "", "control server; empty means Tailscale's")
	flags.StringSliceVar(&o.tags, "tags", nil, "tags that the device asks for, for example tag:k8s-recorder")
	flags.StringSliceVar(&o.from, "from", []string{"tag:k8s-operator", "tag:k8s"}, "tags of devices that may send recordings: one of them is enough")
	flags.StringVar(&o.authKeyFile, "auth-key-file", "", "file with an auth key for the tailnet (or TS_AUTHKEY)")
	flags.StringVar(&o.stateDir, "state-dir", "", "folder for the device's files")
	flags.StringVar(&o.metricsAddress, "metrics-address", "127.0.0.1:9002", "address for /livez, /readyz and /metrics; never on the tailnet")
	flags.DurationVar(&o.drainTimeout, "drain-timeout", time.Minute, "how long open recordings may go on after SIGTERM")
	flags.DurationVar(&o.keep, "keep", 0, "how long recordings are kept, for example 720h; 0 means forever")
	flags.StringVar(&o.total, "max-total", "0", "how much all recordings may take, for example 10Gi; the oldest are deleted first; 0 means all there is")
	flags.DurationVar(&o.atLeast, "keep-at-least", 7*24*time.Hour, "how long recordings are kept from --max-total; while younger ones take all of it, recordings are refused; 0 means that any can be deleted")
	flags.StringVar(&o.recording, "max-recording", "1Gi", "how much one recording may take; a session that must be recorded ends there; 0 means all there is")
	flags.StringVar(&o.free, "min-free", "256Mi", "how much of the file system is left free; recordings are refused below")
	flags.IntVar(&o.open, "max-open", 1000, "how many recordings may be made at a time")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	o.pod.add(flags)
	c.AddCommand(newRecorderList(o), newRecorderPlay(o), newRecorderCat(o), newRecorderEvents(o))
	return c
}

// check checks the flags.
func (o *recorderOptions) check() error {
	if err := o.checkDir(); err != nil {
		return err
	}
	if err := validHostname("--hostname", o.hostname); err != nil {
		return err
	}
	if err := validTags("--tags", o.tags); err != nil {
		return err
	}
	if len(o.from) == 0 {
		return badSetting("--from", "", "give the tags of the proxies, for example tag:k8s")
	}
	if err := validTags("--from", o.from); err != nil {
		return err
	}
	if err := o.checkPod(); err != nil {
		return err
	}
	if _, _, err := net.SplitHostPort(o.metricsAddress); err != nil {
		return badSetting("--metrics-address", o.metricsAddress, "give host:port, or :port for all addresses")
	}
	if o.drainTimeout <= 0 {
		return badSetting("--drain-timeout", o.drainTimeout.String(), "give a duration above 0, for example 60s")
	}
	if o.keep < 0 {
		return badSetting("--keep", o.keep.String(), "give a duration, for example 720h, or 0 for forever")
	}
	if o.atLeast < 0 {
		return badSetting("--keep-at-least", o.atLeast.String(), "give a duration, for example 168h, or 0 for none")
	}
	if o.open <= 0 {
		return badSetting("--max-open", fmt.Sprint(o.open), "give a number above 0")
	}
	o.limits = recorder.Limits{Age: o.keep, AtLeast: o.atLeast, Open: o.open}
	for _, size := range []struct {
		flag, value string
		to          *int64
	}{{"--max-total", o.total, &o.limits.Total}, {"--max-recording", o.recording, &o.limits.Recording}, {"--min-free", o.free, &o.limits.Free}} {
		q, err := resource.ParseQuantity(size.value)
		if err != nil || q.Sign() < 0 {
			return badSetting(size.flag, size.value, "give a size from 0, for example 10Gi")
		}
		*size.to = q.Value()
	}
	return nil
}

// checkPod checks the flags of a pod.
func (o *recorderOptions) checkPod() error {
	switch {
	case o.pod.stateSecret == "" && o.pod.authKeySecret != "":
		return badSetting("--auth-key-secret", o.pod.authKeySecret, "goes with --state-secret")
	case o.pod.stateSecret != "" && o.pod.authKeySecret == "":
		return badSetting("--auth-key-secret", "", "--state-secret needs it")
	case o.pod.stateSecret != "" && o.authKeyFile != "":
		return badSetting("--auth-key-file", o.authKeyFile, "the auth keys of a replica come from --auth-key-secret")
	}
	return nil
}

func (o *recorderOptions) checkDir() error {
	if info, err := os.Stat(o.dir); o.dir == "" || err != nil || !info.IsDir() {
		return badSetting("--dir", o.dir, "give a folder that exists")
	}
	return nil
}

// recorderService is a recorder on a device of a tailnet.
type recorderService struct {
	options  *recorderOptions
	node     *tailnet.Node
	store    *recorder.Store
	registry *prometheus.Registry
	handler  *recorder.Handler
	log      *slog.Logger
	// state is the Secret with the node's state, or nil when that is elsewhere, and podUID
	// the pod that this process is.
	state  *tailnet.SecretStore
	podUID string

	listening atomic.Bool
}

// service returns what the options describe, or what is wrong with them. It joins nothing.
func (o *recorderOptions) service(env environment, logs io.Writer) (*recorderService, error) {
	log, err := newLogger(logs, "--log-level", o.logLevel)
	if err != nil {
		return nil, err
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	config := tailnet.Config{Hostname: o.hostname, Tags: o.tags, Log: log}
	if config.ControlURL, err = loginServer("--login-server", o.loginServer); err != nil {
		return nil, err
	}
	s := &recorderService{options: o, registry: newRegistry(), log: log, podUID: env("POD_UID")}
	if err := s.keepState(env, &config); err != nil {
		return nil, err
	}
	if s.store, err = recorder.NewStore(o.dir, o.limits, log); err != nil {
		return nil, badSetting("--dir", o.dir, err.Error())
	}
	if s.node, err = tailnet.NewNode(config); err != nil {
		return nil, badSetting("--state-dir", config.Dir, err.Error())
	}
	s.handler = recorder.NewHandler(recorder.HandlerConfig{Store: s.store, Peers: s.node, Tags: o.from, Log: log, Metrics: s.registry})
	return s, nil
}

// keepState tells config where the device's state and its auth key are: in Secrets of the
// cluster, or in files.
func (s *recorderService) keepState(env environment, config *tailnet.Config) (err error) {
	o := s.options
	if o.pod.stateSecret == "" {
		if config.AuthKeys, err = fixedKey(env, o.authKeyFile); err != nil {
			return err
		}
		config.Dir, err = makeStateDir(o.stateDir, o.hostname)
		return err
	}
	routeLibraryLogs(s.log)
	if err := o.pod.findNamespace(env); err != nil {
		return err
	}
	cluster, err := clusterConfig("KUBECONFIG", env("KUBECONFIG"))
	if err != nil {
		return err
	}
	client, err := newKubernetesClient(cluster)
	if err != nil {
		return err
	}
	s.state, err = o.pod.join(client, config, o.stateDir)
	return err
}

// run serves until ctx is done, lets open recordings end, and returns nil; or returns
// why it could not serve.
func (s *recorderService) run(ctx context.Context) error {
	pod, err := new(net.ListenConfig).Listen(ctx, "tcp", s.options.metricsAddress)
	if err != nil {
		return badSetting("--metrics-address", s.options.metricsAddress, err.Error())
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	group, life := errgroup.WithContext(life)
	checks := s.checks(ctx)
	s.registry.MustRegister(health.NewCollector("tailhelm_recorder_ready", "1 while /readyz says that the recorder takes recordings.", checks...))
	group.Go(func() error { return serveHealth(life, s.log, pod, s.registry, checks...) })
	if err := s.node.Start(ctx); ctx.Err() != nil {
		return nil // told to end before there was anything to drain
	} else if err != nil {
		return err
	}
	defer func() { _ = s.node.Close() }() // the process ends; there is nothing to do about an error
	group.Go(func() error { return s.node.Run(life) })
	group.Go(func() error { return s.store.Run(life) })
	group.Go(func() error {
		health.Log(life, s.log, checks...)
		return nil
	})
	if s.state != nil {
		group.Go(func() error {
			return s.node.Report(life, s.state, s.podUID, func(ctx context.Context) map[string]string { return health.Failing(ctx, checks...) })
		})
	}
	group.Go(func() error {
		defer end()
		serving, stop := context.WithCancel(ctx)
		defer stop()
		context.AfterFunc(life, stop)
		return s.serve(serving)
	})
	return group.Wait()
}

// serve serves the recorder on the tailnet until ctx is done, and then lets open
// recordings end.
func (s *recorderService) serve(ctx context.Context) error {
	l, err := s.node.Listen(80)
	if err != nil {
		return err
	}
	server := recorder.NewServer(s.handler, s.log, s.registry)
	drained := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(drained)
		draining, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.options.drainTimeout)
		defer cancel()
		_ = server.Shutdown(draining) // what is open then is broken off, and kept so
		_ = server.Close()
	})
	s.listening.Store(true)
	s.log.InfoContext(ctx, "taking recordings on the tailnet", "dir", s.options.dir, "from", s.options.from)
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving port 80 of the tailnet: %w", err)
	}
	<-drained
	return nil
}

// checks returns what must hold for the recorder to be ready.
func (s *recorderService) checks(ctx context.Context) []health.Check {
	return []health.Check{
		{Name: health.CheckShutdown, Check: func(context.Context) error {
			if ctx.Err() != nil {
				return errors.New("shutting down")
			}
			return nil
		}},
		{Name: health.CheckTailnet, Check: s.node.Ready, Warn: s.node.Warning},
		{Name: health.CheckListening, Check: func(context.Context) error {
			if !s.listening.Load() {
				return errors.New("not listening on the tailnet yet")
			}
			return nil
		}},
		{Name: health.CheckDisk, Check: s.store.Ready, Warn: s.store.Warning},
	}
}

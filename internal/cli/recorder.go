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
	"path/filepath"
	"strings"
	"sync/atomic"
	"text/tabwriter"
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
	total          string
	recording      string
	free           string
	open           int

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
			"tailnet policy names by its tag. The recordings are asciicast files; list and play show them.",
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := o.service(env, logs)
			if err != nil {
				return err
			}
			return s.run(c.Context())
		},
	}
	c.PersistentFlags().StringVar(&o.dir, "dir", "", "folder of the recordings, which exists")
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
	flags.StringVar(&o.recording, "max-recording", "1Gi", "how much one recording may take; a session that must be recorded ends there; 0 means all there is")
	flags.StringVar(&o.free, "min-free", "256Mi", "how much of the file system is left free; recordings are refused below")
	flags.IntVar(&o.open, "max-open", 1000, "how many recordings may be made at a time")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	c.AddCommand(newRecorderList(o), newRecorderPlay())
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
	if _, _, err := net.SplitHostPort(o.metricsAddress); err != nil {
		return badSetting("--metrics-address", o.metricsAddress, "give host:port, or :port for all addresses")
	}
	if o.drainTimeout <= 0 {
		return badSetting("--drain-timeout", o.drainTimeout.String(), "give a duration above 0, for example 60s")
	}
	if o.keep < 0 {
		return badSetting("--keep", o.keep.String(), "give a duration, for example 720h, or 0 for forever")
	}
	if o.open <= 0 {
		return badSetting("--max-open", fmt.Sprint(o.open), "give a number above 0")
	}
	o.limits = recorder.Limits{Age: o.keep, Open: o.open}
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

	listening atomic.Bool
}

// service returns what the options describe, or what is wrong with them.
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
	if config.Keys, err = fixedKey(env, o.authKeyFile); err != nil {
		return nil, err
	}
	if config.Dir, err = makeStateDir(o.stateDir, o.hostname); err != nil {
		return nil, err
	}
	s := &recorderService{options: o, registry: newRegistry(), log: log}
	if s.store, err = recorder.NewStore(o.dir, o.limits, log); err != nil {
		return nil, badSetting("--dir", o.dir, err.Error())
	}
	if s.node, err = tailnet.NewNode(config); err != nil {
		return nil, badSetting("--state-dir", config.Dir, err.Error())
	}
	s.handler = recorder.NewHandler(recorder.HandlerConfig{Store: s.store, Peers: s.node, Tags: o.from, Log: log, Metrics: s.registry})
	return s, nil
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
	group.Go(func() error { return serveHealth(life, s.log, pod, s.registry, s.checks(ctx)...) })
	if err := s.node.Start(ctx); ctx.Err() != nil {
		return nil // told to end before there was anything to drain
	} else if err != nil {
		return err
	}
	defer func() { _ = s.node.Close() }() // the process ends; there is nothing to do about an error
	group.Go(func() error { return s.node.Run(life) })
	group.Go(func() error { return s.store.Run(life) })
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
	server := recorder.NewServer(s.handler, s.log)
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
		{Name: checkShutdown, Check: func(context.Context) error {
			if ctx.Err() != nil {
				return errors.New("shutting down")
			}
			return nil
		}},
		{Name: "tailnet", Check: s.node.Ready},
		{Name: "listening", Check: func(context.Context) error {
			if !s.listening.Load() {
				return errors.New("not listening on the tailnet yet")
			}
			return nil
		}},
		{Name: "disk", Check: s.store.Ready},
	}
}

func newRecorderList(o *recorderOptions) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the recordings in a folder, the oldest first",
		Args:  noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.checkDir(); err != nil {
				return err
			}
			list, err := recorder.List(o.dir)
			if err != nil {
				return err
			}
			return printRecordings(c.OutOrStdout(), o.dir, list)
		},
	}
}

// printRecordings prints a table. What a caller chose is quoted.
func printRecordings(w io.Writer, dir string, list []recorder.Info) error {
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "STARTED\tWHO\tFROM\tWHAT\tPOD\tCOMMAND\tBYTES\tWHOLE\tFILE") // Flush tells of an error
	for _, info := range list {
		h := info.Header
		started, kind, pod, who := "?", "?", "?", h.SrcNodeUser
		if h.Timestamp != 0 {
			started = time.Unix(h.Timestamp, 0).UTC().Format(time.RFC3339)
		}
		if k := h.Kubernetes; k != nil {
			kind, pod = k.SessionType, k.Namespace+"/"+k.PodName
		}
		if who == "" {
			who = strings.Join(h.SrcNodeTags, ",")
		}
		file, err := filepath.Rel(dir, info.Path)
		if err != nil {
			file = info.Path
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%q\t%d\t%t\t%s\n", started, plain(who), plain(h.SrcNode), plain(kind), plain(pod), h.Command, info.Bytes, info.Whole, plain(file))
	}
	return table.Flush()
}

// plain returns s, quoted if a terminal would make more of it than text.
func plain(s string) string {
	if s == "" {
		return "-"
	}
	if quoted := fmt.Sprintf("%q", s); quoted[1:len(quoted)-1] != s {
		return quoted
	}
	return s
}

func newRecorderPlay() *cobra.Command {
	var o recorder.PlayOptions
	c := &cobra.Command{
		Use:   "play FILE",
		Short: "Play a recording in this terminal",
		Long: "Play a recording in this terminal. The terminal does what the session's did: a program in a\n" +
			"container chose those bytes. Use a terminal that is not better than that.",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &settingError{"give the file of one recording"}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if o.Speed < 0 {
				return badSetting("--speed", fmt.Sprint(o.Speed), "give a number above 0, or 0 for at once")
			}
			if o.Idle < 0 {
				return badSetting("--idle", o.Idle.String(), "give a duration, for example 2s, or 0 for pauses as they were")
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			return recorder.Play(c.Context(), c.OutOrStdout(), f, o)
		},
	}
	c.Flags().Float64Var(&o.Speed, "speed", 1, "how many times as fast as the session; 0 means at once")
	c.Flags().DurationVar(&o.Idle, "idle", 2*time.Second, "how long a pause gets at most; 0 means as long as it was")
	return c
}

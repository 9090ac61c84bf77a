// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/tailhelm/tailhelm/internal/apiproxy"
	"github.com/tailhelm/tailhelm/internal/tailnet"
)

const (
	// credentialsTimeout bounds the question what the kubeconfig's credentials may do.
	credentialsTimeout = 10 * time.Second
	// credentialsInterval is how often it is asked until there is an answer.
	credentialsInterval = time.Second
)

// proxyOptions are the flags of the command proxy.
type proxyOptions struct {
	serveOptions
	kubeconfig  string
	mode        string
	hostname    string
	loginServer string
	tags        []string
	masters     bool
	replica     replicaOptions
}

func newProxy(env environment, logs io.Writer) *cobra.Command {
	var o proxyOptions
	c := &cobra.Command{
		Use:   "proxy",
		Short: "Serve an API server on the tailnet from outside its cluster",
		Long: "Serve an API server on the tailnet from outside its cluster, so that it can be reached\n" +
			"when the cluster schedules no pods. In mode auth, the credentials of the kubeconfig must be\n" +
			"those of a ServiceAccount that may only impersonate users and groups.\n\n" +
			"With --service it is a replica of a ProxyGroup: one of several hosts of a Tailscale Service. The\n" +
			"operator runs it with all the flags that this needs; the environment variables POD_UID,\n" +
			"POD_NAMESPACE and TS_PORT (UDP port for WireGuard) complete them.",
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := o.service(env, logs)
			if err != nil {
				return err
			}
			if err := s.prepare(); err != nil {
				return err
			}
			good, err := o.checkCredentials(c.Context(), s)
			if err != nil {
				return err
			}
			group, ctx := errgroup.WithContext(c.Context())
			if !good {
				group.Go(func() error { return o.watchCredentials(ctx, s) })
			}
			group.Go(func() error { return s.run(ctx) })
			return group.Wait()
		},
	}
	flags := c.Flags()
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig for the API server (or KUBECONFIG)")
	flags.StringVar(&o.mode, "mode", string(apiproxy.ModeAuth), "auth (callers are impersonated, RBAC decides) or noauth (connectivity only)")
	flags.StringVar(&o.hostname, "hostname", "kube-apiserver", "name of the device on the tailnet")
	flags.StringVar(&o.loginServer, "login-server", "", "control server; empty means Tailscale's")
	flags.StringSliceVar(&o.tags, "tags", nil, "tags that the device asks for, for example tag:k8s")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.BoolVar(&o.masters, "allow-system-masters", false, allowMastersUsage)
	o.add(flags, "127.0.0.1:9002")
	o.replica.add(flags)
	return c
}

// service returns what the options describe, or what is wrong with them. It joins
// nothing.
func (o *proxyOptions) service(env environment, logs io.Writer) (*service, error) {
	log, err := newLogger(logs, "--log-level", o.logLevel)
	if err != nil {
		return nil, err
	}
	routeLibraryLogs(log)
	if err := o.check(); err != nil {
		return nil, err
	}
	config := tailnet.Config{Hostname: o.hostname, Tags: o.tags, Log: log}
	if config.ControlURL, err = loginServer("--login-server", o.loginServer); err != nil {
		return nil, err
	}
	if o.replica.service != "" {
		return o.hosting(env, config)
	}
	if config.AuthKeys, err = fixedKey(env, o.authKeyFile); err != nil {
		return nil, err
	}
	path := cmp.Or(o.kubeconfig, env("KUBECONFIG"))
	upstream, err := o.apiServer(path)
	if err != nil {
		return nil, err
	}
	if config.Dir, err = makeStateDir(o.stateDir, o.hostname); err != nil {
		return nil, err
	}
	node, err := tailnet.NewNode(config)
	if err != nil {
		return nil, badSetting("--state-dir", config.Dir, err.Error())
	}
	certs, err := o.certificates(node)
	if err != nil {
		return nil, err
	}
	return &service{
		options: o.serveOptions, mode: apiproxy.Mode(o.mode), upstream: upstream, upstreamSetting: [2]string{"--kubeconfig", path},
		refusedGroups: refusedGroups(o.masters), node: node, certs: certs, log: log,
	}, nil
}

// watchCredentials refuses them as soon as an API server that could not be asked before
// says that they may do everything, or returns nil when they may not.
func (o *proxyOptions) watchCredentials(ctx context.Context, s *service) error {
	err := wait.PollUntilContextCancel(ctx, credentialsInterval, false, func(ctx context.Context) (bool, error) {
		return o.checkCredentials(ctx, s)
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// checkCredentials asks the API server whether the credentials are good for impersonation
// and no more, and reports whether they are. The error is for those that may do everything:
// what else is wrong with them may be mended later, as /readyz tells.
func (o *proxyOptions) checkCredentials(ctx context.Context, s *service) (good bool, err error) {
	if s.mode != apiproxy.ModeAuth {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	err = apiproxy.CheckImpersonator(ctx, s.upstream)
	if errors.Is(err, apiproxy.ErrAllPowerful) {
		return false, badSetting(s.upstreamSetting[0], s.upstreamSetting[1], err.Error())
	}
	return err == nil, nil
}

// check checks the flags that can be wrong by themselves.
func (o *proxyOptions) check() error {
	if o.mode != string(apiproxy.ModeAuth) && o.mode != string(apiproxy.ModeNoAuth) {
		return badSetting("--mode", o.mode, "choose auth or noauth")
	}
	if err := o.validate(); err != nil {
		return err
	}
	if err := validHostname("--hostname", o.hostname); err != nil {
		return err
	}
	if err := validTags("--tags", o.tags); err != nil {
		return err
	}
	return o.replica.validate(&o.serveOptions, o.tags)
}

// apiServer returns the API server of the kubeconfig at path.
func (o *proxyOptions) apiServer(path string) (*rest.Config, error) {
	if path == "" {
		return nil, badSetting("--kubeconfig", "", "give the kubeconfig of the API server")
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, badSetting("--kubeconfig", path, err.Error())
	}
	return config, nil
}

// makeStateDir returns the folder for the device's state (--state-dir), which it makes.
func makeStateDir(dir, hostname string) (string, error) {
	if dir == "" {
		config, err := os.UserConfigDir()
		if err != nil {
			return "", badSetting("--state-dir", "", "give a folder: "+err.Error())
		}
		dir = filepath.Join(config, "tailhelm", hostname)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", badSetting("--state-dir", dir, err.Error())
	}
	return dir, nil
}

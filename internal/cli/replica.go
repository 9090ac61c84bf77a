// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	"tailscale.com/tailcfg"
	"tailscale.com/tstime"

	"github.com/tailhelm/tailhelm/internal/apiproxy"
	"github.com/tailhelm/tailhelm/internal/health"
	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// replicaOptions are the flags that make the command proxy a replica of a ProxyGroup.
type replicaOptions struct {
	service string
	podOptions
	tlsSecret       string
	lease           string
	impersonator    string
	withdrawDelay   time.Duration
	acceptRoutes    bool
	staticEndpoints []string
}

// add defines the flags.
func (o *replicaOptions) add(flags *pflag.FlagSet) {
	flags.StringVar(&o.service, "service", "", "Tailscale Service to be a host of, for example svc:my-cluster; the following flags go with it")
	o.podOptions.add(flags)
	flags.StringVar(&o.tlsSecret, "tls-secret", "", "Secret with the Service's certificate, which the replicas share")
	flags.StringVar(&o.lease, "lease", "", "Lease that decides which replica orders the certificate")
	flags.StringVar(&o.impersonator, "impersonator", "kube-apiserver-auth-proxy", "in mode auth: ServiceAccount with whose tokens callers are impersonated")
	flags.DurationVar(&o.withdrawDelay, "withdraw-delay", 20*time.Second, "how long clients have, after SIGTERM, to notice that other hosts serve the Service")
	flags.BoolVar(&o.acceptRoutes, "accept-routes", false, "use the routes of the tailnet's subnet routers")
	flags.StringSliceVar(&o.staticEndpoints, "static-endpoints", nil, "addresses (ip:port) at which the device can be reached from outside the cluster")
}

// validate checks the flags. None but those with defaults may be set without --service.
func (o *replicaOptions) validate(serve *serveOptions, tags []string) error {
	needed := []struct{ flag, value string }{
		{"--state-secret", o.stateSecret}, {"--auth-key-secret", o.authKeySecret}, {"--tls-secret", o.tlsSecret}, {"--lease", o.lease},
	}
	for _, n := range needed {
		if o.service == "" && n.value != "" {
			return badSetting(n.flag, n.value, "goes with --service")
		}
		if o.service != "" && n.value == "" {
			return badSetting(n.flag, "", "--service needs it")
		}
	}
	if o.service == "" {
		return nil
	}
	if err := tailcfg.ServiceName(o.service).Validate(); err != nil {
		return badSetting("--service", o.service, fmt.Sprintf("%v: give svc: and a DNS label, for example svc:my-cluster", err))
	}
	if len(tags) == 0 {
		return badSetting("--tags", "", "hosts of a Service are tagged: give a tag, for example tag:k8s")
	}
	if serve.tls != tlsACME {
		return badSetting("--tls", serve.tls, "replicas share a certificate of the tailnet: choose acme")
	}
	if serve.authKeyFile != "" {
		return badSetting("--auth-key-file", serve.authKeyFile, "the auth keys of a replica come from --auth-key-secret")
	}
	if o.withdrawDelay < 0 {
		return badSetting("--withdraw-delay", o.withdrawDelay.String(), "give a duration from 0, for example 20s")
	}
	_, err := o.endpoints()
	return err
}

// endpoints returns the static endpoints.
func (o *replicaOptions) endpoints() ([]netip.AddrPort, error) {
	var endpoints []netip.AddrPort
	for _, value := range o.staticEndpoints {
		endpoint, err := netip.ParseAddrPort(value)
		if err != nil {
			return nil, badSetting("--static-endpoints", strings.Join(o.staticEndpoints, ","), err.Error())
		}
		endpoints = append(endpoints, endpoint)
	}
	return endpoints, nil
}

// replica is what a replica of a ProxyGroup does besides serving.
type replica struct {
	service       *tailnet.Service
	withdrawDelay time.Duration
	// followEndpoints keeps the node's static endpoints up to date until ctx is done; nil
	// when there are none to follow.
	followEndpoints func(context.Context)
}

// hosting returns the service of a replica.
func (o *proxyOptions) hosting(env environment, config tailnet.Config) (*service, error) {
	r := &o.replica
	path := cmp.Or(o.kubeconfig, env("KUBECONFIG"))
	cluster, err := clusterConfig("--kubeconfig", path)
	if err != nil {
		return nil, err
	}
	if err := r.findNamespace(env); err != nil {
		return nil, err
	}
	if config.Endpoints, err = r.endpoints(); err != nil {
		return nil, err
	}
	if config.Port, err = wireGuardPort(env); err != nil {
		return nil, err
	}
	client, err := newKubernetesClient(cluster)
	if err != nil {
		return nil, err
	}
	state, err := r.join(client, &config, o.stateDir)
	if err != nil {
		return nil, err
	}
	config.AcceptRoutes = r.acceptRoutes
	node, err := tailnet.NewNode(config)
	if err != nil {
		return nil, err
	}
	var follow func(context.Context)
	if config.Port != 0 { // static endpoints lead to a port that is known
		follow = func(ctx context.Context) {
			node.FollowEndpoints(ctx, client.CoreV1().Secrets(r.namespace), r.authKeySecret)
		}
	}
	hosted := node.Service(tailcfg.ServiceName(r.service), 443, 80)
	return &service{
		options: o.serveOptions, mode: apiproxy.Mode(o.mode), upstream: r.upstream(apiproxy.Mode(o.mode), cluster, client),
		upstreamSetting: [2]string{"--kubeconfig", path}, refusedGroups: refusedGroups(o.masters), node: node, log: config.Log,
		certs: hosted.SharedCertificates(tailnet.SharedConfig{
			Client: client, Namespace: r.namespace, Secret: r.tlsSecret, Lease: r.lease, Identity: o.hostname, Log: config.Log,
			Staging: strings.Contains(env("TS_DEBUG_ACME_DIRECTORY_URL"), "acme-staging"),
		}),
		state: state, podUID: env("POD_UID"),
		replica: &replica{service: hosted, withdrawDelay: r.withdrawDelay, followEndpoints: follow},
	}, nil
}

// upstream returns the way to the API server: with the impersonator's credentials, or
// with none.
func (o *replicaOptions) upstream(mode apiproxy.Mode, cluster *rest.Config, client *kubernetesClient) *rest.Config {
	if mode == apiproxy.ModeAuth {
		return apiproxy.ImpersonatorConfig(cluster, client, o.namespace, o.impersonator)
	}
	return rest.AnonymousClientConfig(cluster)
}

// run hosts the Service as soon as everything else is ready, until ctx is done.
func (r *replica) run(ctx context.Context, checks []health.Check) error {
	others := make([]health.Check, 0, len(checks))
	for _, c := range checks {
		if c.Name != health.CheckService {
			others = append(others, c)
		}
	}
	if r.followEndpoints != nil {
		go r.followEndpoints(ctx)
	}
	return r.service.Run(ctx, func(ctx context.Context) error {
		for name, why := range health.Failing(ctx, others...) {
			return fmt.Errorf("%s: %s", name, why)
		}
		return nil
	})
}

// withdraw sends clients to other hosts of the Service, and gives them the time to
// notice.
func (r *replica) withdraw(ctx context.Context, quiesce func(context.Context)) error {
	if err := r.service.Withdraw(ctx, quiesce); err != nil {
		return err
	}
	tstime.Sleep(ctx, r.withdrawDelay)
	return nil
}

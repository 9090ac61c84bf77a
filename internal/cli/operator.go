// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"tailscale.com/tailcfg"

	"github.com/tailhelm/tailhelm/internal/apiproxy"
	"github.com/tailhelm/tailhelm/internal/controller"
	"github.com/tailhelm/tailhelm/internal/health"
	"github.com/tailhelm/tailhelm/internal/tailapi"
	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// operatorOptions are the configuration of the command operator: environment
// variables with the names of Tailscale's operator, and flags for the rest.
type operatorOptions struct {
	serveOptions
	impersonator string // flag
	idTokenFile  string // flag
	masters      bool   // flag
	controller   controllerOptions

	mode        apiproxy.Mode       // APISERVER_PROXY; "" is off
	hostname    string              // OPERATOR_HOSTNAME
	namespace   string              // OPERATOR_NAMESPACE
	stateSecret string              // OPERATOR_SECRET
	podUID      string              // POD_UID
	loginServer string              // OPERATOR_LOGIN_SERVER
	tags        []string            // OPERATOR_INITIAL_TAGS
	port        uint16              // TS_PORT
	keys        tailnet.AuthKeys    // TS_AUTHKEY, or minted with:
	credentials tailapi.Credentials // CLIENT_ID_FILE and CLIENT_SECRET_FILE, or CLIENT_ID
	api         *tailapi.Client     // with credentials; nil without any
}

// defaultIDTokenFile is where the chart mounts a workload identity's token.
const defaultIDTokenFile = "/var/run/secrets/tailscale/serviceaccount/token" //nolint:gosec // a path, no secret

const allowMastersUsage = "let the tailnet policy grant the group system:masters, which may do everything"

func newOperator(env environment, logs io.Writer) *cobra.Command {
	var o operatorOptions
	c := &cobra.Command{
		Use:   "operator",
		Short: "Run in a cluster and serve its API server on the tailnet",
		Long: "Run in a cluster and serve its API server on the tailnet, by itself and by ProxyGroups. The Helm chart\n" +
			"sets the environment: APISERVER_PROXY, OPERATOR_HOSTNAME, OPERATOR_NAMESPACE, OPERATOR_SECRET,\n" +
			"OPERATOR_INITIAL_TAGS, OPERATOR_LOGIN_SERVER, OPERATOR_LOGGING, CLIENT_ID_FILE, CLIENT_SECRET_FILE,\n" +
			"CLIENT_ID, TS_AUTHKEY, TS_PORT, PROXY_TAGS, PROXY_DEFAULT_CLASS.",
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error { return o.run(c.Context(), env, logs) },
	}
	flags := c.Flags()
	flags.StringVar(&o.impersonator, "impersonator", "kube-apiserver-auth-proxy", "ServiceAccount in the operator's namespace with whose tokens callers are impersonated")
	flags.StringVar(&o.idTokenFile, "id-token-file", defaultIDTokenFile, "with CLIENT_ID: file with the workload identity's token")
	flags.BoolVar(&o.masters, "allow-system-masters", false, allowMastersUsage)
	o.add(flags, ":9002")
	o.controller.add(flags)
	return c
}

// run runs the operator until ctx is done.
func (o *operatorOptions) run(ctx context.Context, env environment, logs io.Writer) error {
	log, err := newLogger(logs, "OPERATOR_LOGGING", env("OPERATOR_LOGGING"))
	if err != nil {
		return err
	}
	routeLibraryLogs(log)
	if err := o.read(env); err != nil {
		return err
	}
	if o.mode == "" && !o.controller.on {
		return o.idle(ctx, nil, log)
	}
	config, err := clusterConfig("KUBECONFIG", env("KUBECONFIG"))
	if err != nil {
		return err
	}
	// Whatever happens to the controllers, the proxy serves.
	controllers := o.controllers(config, log)
	controlling, stop := context.WithCancel(ctx)
	wait := runControllers(controlling, controllers)
	defer func() { stop(); wait() }()
	if o.mode == "" {
		return o.idle(ctx, controllers, log)
	}
	s, err := o.service(config, log)
	if err != nil {
		return err
	}
	s.upstreamSetting = [2]string{"KUBECONFIG", env("KUBECONFIG")}
	s.controllers = controllers
	if err := s.prepare(); err != nil {
		return err
	}
	return s.run(ctx)
}

// service returns the in-process proxy.
func (o *operatorOptions) service(config *rest.Config, log *slog.Logger) (*service, error) {
	client, err := newKubernetesClient(config)
	if err != nil {
		return nil, err
	}
	state := tailnet.NewSecretStore(client, o.namespace, o.stateSecret, log)
	if o.stateDir == "" {
		if o.stateDir, err = os.MkdirTemp("", "tailhelm-"); err != nil {
			return nil, badSetting("--state-dir", "", err.Error())
		}
	}
	node, err := tailnet.NewNode(tailnet.Config{
		Hostname: o.hostname, Dir: o.stateDir, Store: state, ControlURL: o.loginServer,
		Tags: o.tags, Port: o.port, AuthKeys: o.keys, Log: log,
	})
	if err != nil {
		return nil, err
	}
	certs, err := o.certificates(node)
	if err != nil {
		return nil, err
	}
	upstream := rest.AnonymousClientConfig(config)
	if o.mode == apiproxy.ModeAuth {
		upstream = apiproxy.ImpersonatorConfig(config, client, o.namespace, o.impersonator)
	}
	return &service{options: o.serveOptions, mode: o.mode, upstream: upstream, refusedGroups: refusedGroups(o.masters), node: node, certs: certs, state: state, podUID: o.podUID, log: log}, nil
}

// refusedGroups returns the groups that nobody can be in through the proxy.
func refusedGroups(allowMasters bool) []string {
	if allowMasters {
		return nil
	}
	return []string{user.SystemPrivilegedGroup}
}

// idle serves health only: without a proxy there is nothing to join a tailnet for.
func (o *operatorOptions) idle(ctx context.Context, controllers *controller.Controllers, log *slog.Logger) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", o.metricsAddress)
	if err != nil {
		return badSetting("--metrics-address", o.metricsAddress, err.Error())
	}
	log.InfoContext(ctx, "the API server proxy of the operator's own pod is off (APISERVER_PROXY)")
	checks := append([]health.Check{{Name: health.CheckPing}}, controllerChecks(controllers)...)
	registry := newRegistry()
	registry.MustRegister(health.NewCollector("tailhelm_operator_ready", "1 while /readyz says that the operator is ready.", checks...))
	var metrics prometheus.Gatherer = registry
	if controllers != nil {
		metrics = withControllers(metrics)
	}
	go health.Log(ctx, log, checks...)
	return serveHealth(ctx, log, l, metrics, checks...)
}

// read reads and checks the configuration. It joins and asks nothing.
func (o *operatorOptions) read(env environment) error {
	var err error
	if o.mode, err = proxyMode(env("APISERVER_PROXY"), env("AUTH_PROXY")); err != nil {
		return err
	}
	if err := o.validate(); err != nil {
		return err
	}
	if err := o.controller.read(env); err != nil || o.mode == "" && !o.controller.on {
		return err
	}
	if o.mode != "" {
		if err := o.readDevice(env); err != nil {
			return err
		}
	}
	if o.namespace, err = operatorNamespace(env); err != nil {
		return err
	}
	if o.loginServer, err = loginServer("OPERATOR_LOGIN_SERVER", env("OPERATOR_LOGIN_SERVER")); err != nil {
		return err
	}
	o.tags = strings.Split(cmp.Or(env("OPERATOR_INITIAL_TAGS"), "tag:k8s-operator"), ",")
	if err := validTags("OPERATOR_INITIAL_TAGS", o.tags); err != nil {
		return err
	}
	return o.readKeys(env)
}

// readDevice reads what the operator's own device needs.
func (o *operatorOptions) readDevice(env environment) (err error) {
	o.hostname = cmp.Or(env("OPERATOR_HOSTNAME"), "tailscale-operator")
	if err := validHostname("OPERATOR_HOSTNAME", o.hostname); err != nil {
		return err
	}
	if o.stateSecret = env("OPERATOR_SECRET"); o.stateSecret == "" {
		return badSetting("OPERATOR_SECRET", "", "give the name of the Secret that holds the device's state")
	}
	o.podUID = env("POD_UID")
	o.port, err = wireGuardPort(env)
	return err
}

// readKeys reads the credentials for the tailnet: exactly one kind of them.
func (o *operatorOptions) readKeys(env environment) error {
	fixed, err := fixedKey(env, o.authKeyFile)
	if err != nil {
		return err
	}
	id, idFile, secretFile := env("CLIENT_ID"), env("CLIENT_ID_FILE"), env("CLIENT_SECRET_FILE")
	switch client := id != "" || idFile != "" || secretFile != ""; {
	case fixed != nil && client:
		return badSetting("TS_AUTHKEY", "(hidden)", "an OAuth client is configured, too: give an auth key or CLIENT_ID or CLIENT_ID_FILE and CLIENT_SECRET_FILE")
	case fixed != nil:
		o.keys = fixed
		return nil
	case !client:
		return badSetting("CLIENT_ID_FILE", "", "give CLIENT_ID_FILE and CLIENT_SECRET_FILE (an OAuth client), CLIENT_ID (a workload identity), or TS_AUTHKEY or --auth-key-file (an auth key)")
	}
	if err := validClient(id, idFile, secretFile); err != nil {
		return err
	}
	o.credentials = tailapi.Credentials{
		BaseURL: o.loginServer, ClientID: id, IDTokenFile: o.idTokenFile, ClientIDFile: idFile, ClientSecretFile: secretFile,
	}
	o.api = tailapi.New(o.credentials)
	o.keys = &tailnet.Minter{API: o.api, Tags: o.tags, Description: "Kubernetes API server proxy"}
	return nil
}

// validClient checks that there is a workload identity or an OAuth client, and all of it.
func validClient(id, idFile, secretFile string) error {
	switch {
	case id != "" && (idFile != "" || secretFile != ""):
		return badSetting("CLIENT_ID", id, "CLIENT_ID_FILE or CLIENT_SECRET_FILE is set, too: give a workload identity or an OAuth client")
	case id == "" && idFile == "":
		return badSetting("CLIENT_ID_FILE", "", "goes with CLIENT_SECRET_FILE: give both")
	case id == "" && secretFile == "":
		return badSetting("CLIENT_SECRET_FILE", "", "goes with CLIENT_ID_FILE: give both")
	}
	return nil
}

// proxyMode reads APISERVER_PROXY and its deprecated predecessor AUTH_PROXY.
func proxyMode(value, deprecated string) (apiproxy.Mode, error) {
	switch {
	case deprecated != "" && value != "":
		return "", badSetting("AUTH_PROXY", deprecated, "is deprecated and APISERVER_PROXY is set, too: unset AUTH_PROXY")
	case deprecated != "":
		on, err := strconv.ParseBool(deprecated)
		if err != nil {
			return "", badSetting("AUTH_PROXY", deprecated, "is deprecated: use APISERVER_PROXY, with true, false or noauth")
		}
		value = strconv.FormatBool(on)
	}
	switch value {
	case "true":
		return apiproxy.ModeAuth, nil
	case "noauth":
		return apiproxy.ModeNoAuth, nil
	case "false", "":
		return "", nil
	}
	return "", badSetting("APISERVER_PROXY", value, "choose true, false or noauth")
}

// wireGuardPort reads TS_PORT.
func wireGuardPort(env environment) (uint16, error) {
	value := env("TS_PORT")
	if value == "" {
		return 0, nil
	}
	port, err := strconv.ParseUint(value, 10, 16)
	if err != nil {
		return 0, badSetting("TS_PORT", value, "give a UDP port from 0 to 65535")
	}
	return uint16(port), nil
}

// validTags checks the form of tags.
func validTags(setting string, tags []string) error {
	for _, tag := range tags {
		if err := tailcfg.CheckTag(tag); err != nil {
			return badSetting(setting, strings.Join(tags, ","), fmt.Sprintf("tag %q: %v", tag, err))
		}
	}
	return nil
}

// operatorNamespace returns the namespace that the operator runs in.
func operatorNamespace(env environment) (string, error) {
	if ns := env("OPERATOR_NAMESPACE"); ns != "" {
		return ns, nil
	}
	const file = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
	b, err := os.ReadFile(file)
	if err != nil {
		return "", badSetting("OPERATOR_NAMESPACE", "", "give the namespace that the operator runs in")
	}
	return strings.TrimSpace(string(b)), nil
}

// clusterConfig returns the process's own access to the API server: the kubeconfig
// at path, which setting names, or what a pod has if path is empty.
func clusterConfig(setting, path string) (*rest.Config, error) {
	if path != "" {
		config, err := clientcmd.BuildConfigFromFlags("", path)
		if err != nil {
			return nil, badSetting(setting, path, err.Error())
		}
		return config, nil
	}
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, badSetting(setting, "", "not in a cluster: "+err.Error())
	}
	return config, nil
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/tailhelm/tailhelm/internal/controller"
)

// cleanupOptions are the configuration of the command cleanup.
type cleanupOptions struct {
	operator    operatorOptions // credentials of the tailnet
	namespace   string
	deployment  string
	stateSecret string
	name        string
	loginServer string
	logLevel    string
	timeout     time.Duration
}

func newCleanup(env environment, logs io.Writer) *cobra.Command {
	var o cleanupOptions
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Leave nothing of an operator behind, before it is uninstalled",
		Long: "Leave nothing of an operator behind, before it is uninstalled: delete its ProxyGroups and Recorders,\n" +
			"stop it, and delete its device and the state of it. The environment is that of the operator: CLIENT_ID_FILE,\n" +
			"CLIENT_SECRET_FILE, CLIENT_ID.",
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			cleanup, err := o.cleanup(env, logs)
			if err != nil {
				return err
			}
			return cleanup.Run(c.Context())
		},
	}
	flags := c.Flags()
	flags.StringVar(&o.namespace, "namespace", "", "namespace of the operator (or OPERATOR_NAMESPACE)")
	flags.StringVar(&o.deployment, "deployment", "operator", "Deployment of the operator")
	flags.StringVar(&o.stateSecret, "state-secret", "operator", "Secret with the state of the operator's device")
	flags.StringVar(&o.name, "operator-name", "", "name by which ProxyGroups and Recorders are the operator's, as in its own flag")
	flags.String("release", "", "name of the Helm release, for people who read the hook's Job")
	flags.StringVar(&o.loginServer, "login-server", "", "control server; empty means Tailscale's")
	flags.StringVar(&o.operator.idTokenFile, "id-token-file", defaultIDTokenFile, "with CLIENT_ID: file with the workload identity's token")
	flags.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	flags.DurationVar(&o.timeout, "timeout", 4*time.Minute, "how long it may take; what is left then is logged")
	return c
}

// cleanup returns what the options describe, or what is wrong with them.
func (o *cleanupOptions) cleanup(env environment, logs io.Writer) (*controller.Cleanup, error) {
	log, err := newLogger(logs, "--log-level", o.logLevel)
	if err != nil {
		return nil, err
	}
	routeLibraryLogs(log)
	if o.namespace == "" {
		if o.namespace, err = operatorNamespace(env); err != nil {
			return nil, err
		}
	}
	if o.timeout <= 0 {
		return nil, badSetting("--timeout", o.timeout.String(), "give a duration above 0, for example 4m")
	}
	if o.operator.loginServer, err = loginServer("--login-server", o.loginServer); err != nil {
		return nil, err
	}
	cluster, err := clusterConfig("KUBECONFIG", env("KUBECONFIG"))
	if err != nil {
		return nil, err
	}
	if err := o.operator.readKeys(env); err != nil {
		log.Warn("there is no access to the Tailscale API: the operator's device stays", "error", err)
	}
	return &controller.Cleanup{
		API: o.operator.api, Cluster: cluster, Deployment: o.deployment, Log: log, Namespace: o.namespace,
		Operator: o.name, StateSecret: o.stateSecret, Timeout: o.timeout,
	}, nil
}

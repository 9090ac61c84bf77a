// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"os"

	"github.com/spf13/pflag"

	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// podOptions are the flags of a process that the operator runs in a pod: where its device's
// state is, and where it finds auth keys.
type podOptions struct {
	namespace     string
	stateSecret   string
	authKeySecret string
}

// add defines the flags.
func (o *podOptions) add(flags *pflag.FlagSet) {
	flags.StringVar(&o.namespace, "namespace", "", "namespace of the Secrets, and of all else in the cluster that the process uses (or POD_NAMESPACE)")
	flags.StringVar(&o.stateSecret, "state-secret", "", "Secret with the device's state, which exists")
	flags.StringVar(&o.authKeySecret, "auth-key-secret", "", "Secret in which the operator issues auth keys")
}

// findNamespace fills in the namespace.
func (o *podOptions) findNamespace(env environment) error {
	if o.namespace = cmp.Or(o.namespace, env("POD_NAMESPACE")); o.namespace == "" {
		return badSetting("--namespace", "", "give the namespace of the replica's Secrets")
	}
	return nil
}

// join makes config that of a device whose state and auth keys are in the Secrets, and returns
// the state. dir is for the device's files; "" is a new folder.
func (o *podOptions) join(client *kubernetesClient, config *tailnet.Config, dir string) (*tailnet.SecretStore, error) {
	state := tailnet.NewSecretStore(client, o.namespace, o.stateSecret, config.Log)
	config.Store = state
	config.AuthKeys = &tailnet.IssuedAuthKeys{Client: client, Namespace: o.namespace, Name: o.authKeySecret, State: state}
	if config.Dir = dir; config.Dir == "" {
		var err error
		if config.Dir, err = os.MkdirTemp("", "tailhelm-"); err != nil {
			return nil, badSetting("--state-dir", "", err.Error())
		}
	}
	return state, nil
}

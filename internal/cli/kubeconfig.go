// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/clientcmd"
	"tailscale.com/client/local"
	"tailscale.com/ipn/ipnstate"

	entries "github.com/tailhelm/tailhelm/internal/kubeconfig"
)

// kubeconfigOptions are the flags of the command, and where tailscaled tells its state.
type kubeconfigOptions struct {
	status     func(context.Context) (*ipnstate.Status, error)
	mode       string
	context    string
	namespace  string
	groups     []string
	http       bool
	file       string
	stdout     bool
	setCurrent bool
}

func newKubeconfig() *cobra.Command { return newKubeconfigWith((&local.Client{}).Status) }

func newKubeconfigWith(status func(context.Context) (*ipnstate.Status, error)) *cobra.Command {
	o := &kubeconfigOptions{status: status}
	c := &cobra.Command{
		Use:   "kubeconfig NAME",
		Short: "Write the kubeconfig entries for a proxy",
		Long: "Write a cluster, a user and a context for a proxy into your kubeconfig. NAME is the proxy's full name on the tailnet (cluster.tail1234.ts.net), the first\n" +
			"part of it (cluster), or its address (https://cluster.tail1234.ts.net). Everything else in the file stays as it is. The command does not connect to the proxy:\n" +
			"\"tailhelm doctor NAME\" does.",
		Args: oneProxy,
		RunE: func(c *cobra.Command, args []string) error { return o.run(c, args[0]) },
	}
	flags := c.Flags()
	flags.StringVar(&o.mode, "mode", "auth", "the proxy's mode: auth, or noauth, in which you bring credentials of the cluster")
	flags.StringVar(&o.context, "context", "", "name of the context (default: the proxy's full name)")
	flags.StringVar(&o.namespace, "namespace", "", "namespace of the context (default: the one it has)")
	flags.StringArrayVar(&o.groups, "as-group", nil, "work with this group of yours instead of all that you have; repeat it for more")
	flags.BoolVar(&o.http, "http", false, "the proxy serves plain HTTP (tls.source \"off\")")
	flags.StringVar(&o.file, "kubeconfig", "", "file to write (default: as kubectl, KUBECONFIG or ~/.kube/config)")
	flags.BoolVar(&o.stdout, "stdout", false, "print a kubeconfig with these entries alone, and write nothing")
	flags.BoolVar(&o.setCurrent, "set-current", true, "make the context the current one")
	return c
}

// oneProxy refuses arguments other than the name of one proxy, as wrong configuration.
func oneProxy(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return &settingError{"give the name of one proxy, for example cluster or cluster.tail1234.ts.net"}
	}
	return nil
}

func (o *kubeconfigOptions) check() error {
	switch {
	case o.mode != "auth" && o.mode != "noauth":
		return badSetting("--mode", o.mode, "choose auth or noauth")
	case len(o.groups) > 0 && o.mode == "noauth":
		return badSetting("--as-group", strings.Join(o.groups, ","), "works with --mode=auth alone")
	case slices.Contains(o.groups, ""):
		return badSetting("--as-group", "", "give the name of a group")
	case o.namespace != "" && len(validation.IsDNS1123Label(o.namespace)) > 0:
		return badSetting("--namespace", o.namespace, "give the name of a namespace: lower case letters, digits and -")
	case o.stdout && o.file != "":
		return badSetting("--kubeconfig", o.file, "--stdout writes no file: leave out one of the two")
	}
	return nil
}

func (o *kubeconfigOptions) run(c *cobra.Command, name string) error {
	if err := o.check(); err != nil {
		return err
	}
	target, err := entries.ParseTarget(name, o.http)
	if err != nil {
		return badSetting("NAME", name, err.Error())
	}
	e := entries.Entries{
		Target: target, NoAuth: o.mode == "noauth", Context: o.context, Namespace: o.namespace,
		Groups: o.groups, SetCurrent: o.setCurrent,
	}
	if err := o.ask(c.Context(), &e); err != nil {
		return err
	}
	if o.stdout {
		b, written, err := entries.Render(e)
		if err != nil {
			return err
		}
		if _, err := c.OutOrStdout().Write(b); err != nil {
			return err
		}
		return adviseUser(c.ErrOrStderr(), written)
	}
	written, err := entries.Write(pathOptions(o.file), e)
	if err != nil {
		return err
	}
	current := ""
	if o.setCurrent {
		current = " and made it the current one"
	}
	if _, err := fmt.Fprintf(c.OutOrStdout(), "Wrote the context %q for %s to %s%s.\n", written.Context, e.Target.URL(), written.File, current); err != nil {
		return err
	}
	return adviseUser(c.OutOrStdout(), written)
}

// ask completes e with what tailscaled knows. A full name without groups needs nothing of
// it, so that a kubeconfig can be made anywhere.
func (o *kubeconfigOptions) ask(ctx context.Context, e *entries.Entries) error {
	if !e.Target.Short() && len(e.Groups) == 0 {
		return nil
	}
	status, err := o.status(ctx)
	if err != nil {
		return fmt.Errorf("asking tailscaled, for a short name or --as-group: %w", err)
	}
	if e.Target.Short() {
		suffix, err := entries.Suffix(status)
		if err != nil {
			return err
		}
		e.Target = e.Target.Complete(suffix)
	}
	if len(e.Groups) > 0 {
		if e.As, err = entries.Self(status); err != nil {
			return fmt.Errorf("--as-group: %w", err)
		}
	}
	return nil
}

// pathOptions is where kubectl has its kubeconfig: file, or KUBECONFIG, or the default.
func pathOptions(file string) *clientcmd.PathOptions {
	paths := clientcmd.NewDefaultPathOptions()
	paths.LoadingRules.ExplicitPath = file
	paths.LoadingRules.WarnIfAllMissing = false // it is made
	return paths
}

// adviseUser says what to add if the context has no credentials.
func adviseUser(w io.Writer, written entries.Written) error {
	var err error
	switch {
	case written.User == "":
		_, err = fmt.Fprintf(w, "The context has no user yet. Add your credentials of the cluster, for example:\n"+
			"  kubectl config set-credentials my-user --token=<token>\n"+
			"  kubectl config set-context %s --user=my-user\n", written.Context)
	case written.UserMissing:
		_, err = fmt.Fprintf(w, "The context's user %[1]q is not in the kubeconfig. Add it, for example:\n"+
			"  kubectl config set-credentials %[1]s --token=<token>\n", written.User)
	}
	return err
}

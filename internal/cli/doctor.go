// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"tailscale.com/client/local"

	"github.com/tailhelm/tailhelm/internal/doctor"
	entries "github.com/tailhelm/tailhelm/internal/kubeconfig"
)

// doctorOptions are the flags of the command, and the device's tailscaled.
type doctorOptions struct {
	tailscaled doctor.Tailscaled
	http       bool
	file       string
	timeout    time.Duration
	output     string
}

func newDoctor() *cobra.Command { return newDoctorWith(&local.Client{}) }

func newDoctorWith(tailscaled doctor.Tailscaled) *cobra.Command {
	o := &doctorOptions{tailscaled: tailscaled}
	c := &cobra.Command{
		Use:   "doctor NAME",
		Short: "Say what is in the way between this device and an API server",
		Long: "Try the way from this device to an API server, step by step, and say of each step what there is and what to do. NAME is the proxy's full name on the tailnet\n" +
			"(cluster.tail1234.ts.net), the first part of it (cluster), or its address. It changes nothing and sends no credentials. If a step fails, those that need it are\n" +
			"not tried (-), and the exit status is 1.",
		Args: oneProxy,
		RunE: func(c *cobra.Command, args []string) error { return o.run(c, args[0]) },
	}
	flags := c.Flags()
	flags.BoolVar(&o.http, "http", false, "the proxy serves plain HTTP (tls.source \"off\")")
	flags.StringVar(&o.file, "kubeconfig", "", "kubeconfig to look at (default: as kubectl, KUBECONFIG or ~/.kube/config)")
	flags.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long all steps may take together; each may take a third of it")
	flags.StringVar(&o.output, "output", "text", "text, or json for programs and tickets")
	return c
}

func (o *doctorOptions) run(c *cobra.Command, name string) error {
	if o.output != "text" && o.output != "json" {
		return badSetting("--output", o.output, "choose text or json")
	}
	if o.timeout <= 0 {
		return badSetting("--timeout", o.timeout.String(), "give a duration above 0, for example 30s")
	}
	target, err := entries.ParseTarget(name, o.http)
	if err != nil {
		return badSetting("NAME", name, err.Error())
	}
	report := doctor.Doctor{
		Tailscaled: o.tailscaled, Lookup: lookUpHost, Dial: new(net.Dialer).DialContext, Kubeconfig: o.loadKubeconfig, Timeout: o.timeout,
	}.Run(c.Context(), target)
	if o.output == "json" {
		encoder := json.NewEncoder(c.OutOrStdout())
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
	} else {
		err = printReport(c.OutOrStdout(), report)
	}
	if err != nil {
		return err
	}
	for _, step := range report.Steps {
		if step.Status == doctor.Failed {
			return fmt.Errorf("the step %q failed", step.Name)
		}
	}
	return nil
}

// lookUpHost asks the system's resolver, as kubectl does.
func lookUpHost(ctx context.Context, host string) ([]netip.Addr, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

// loadKubeconfig reads what kubectl reads.
func (o *doctorOptions) loadKubeconfig() (*clientcmdapi.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.file
	rules.WarnIfAllMissing = false // the step says so
	return rules.Load()
}

// printReport prints a line for each step. What servers said is printed as text, whatever
// a terminal would make of it.
func printReport(w io.Writer, report doctor.Report) error {
	marks := map[doctor.Status]string{doctor.OK: "ok", doctor.Failed: "FAIL", doctor.NotTried: "-"}
	for _, step := range report.Steps {
		text := step.Found
		switch {
		case text == "":
			text = "not tried"
		case step.Advice != "":
			text += ". " + step.Advice
		}
		if _, err := fmt.Fprintf(w, "%-4s  %-10s  %s\n", marks[step.Status], step.Name, strings.Map(printable, text)); err != nil {
			return err
		}
	}
	return nil
}

// printable replaces what is no text.
func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return ' '
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/tailhelm/tailhelm/internal/controller"
	"github.com/tailhelm/tailhelm/internal/health"
)

// controllerOptions are the configuration of the operator's controllers.
type controllerOptions struct {
	on               bool   // flags
	workloadsDir     string //
	leaderElectionID string //
	installCRDs      bool   //
	release          string //
	name             string //

	tags         []string // PROXY_TAGS
	defaultClass string   // PROXY_DEFAULT_CLASS
}

// add defines the flags.
func (o *controllerOptions) add(flags *pflag.FlagSet) {
	flags.BoolVar(&o.on, "controllers", false, "serve ProxyGroups, ProxyClasses and Recorders; the following flags go with it")
	flags.StringVar(&o.workloadsDir, "workloads-dir", "/etc/tailhelm/workloads", "folder with the templates of what ProxyGroups and Recorders are made of")
	flags.StringVar(&o.leaderElectionID, "leader-election-id", "", "Lease by which one of several operators is chosen to work; empty means there is one")
	flags.BoolVar(&o.installCRDs, "install-crds", false, "make and upgrade the CustomResourceDefinitions of ProxyGroups, ProxyClasses and Recorders")
	flags.StringVar(&o.name, "operator-name", "", "name of this operator, for example namespace/name of its Deployment: ProxyGroups and Recorders of other operators are left alone")
	flags.StringVar(&o.release, "release", "operator", "name of the Helm release, for the templates")
}

// read reads and checks the configuration.
func (o *controllerOptions) read(env environment) error {
	if !o.on {
		return nil
	}
	if info, err := os.Stat(o.workloadsDir); err != nil || !info.IsDir() {
		return badSetting("--workloads-dir", o.workloadsDir, "give the folder with the templates of workloads, as the chart has it")
	}
	o.tags = strings.Split(cmp.Or(env("PROXY_TAGS"), "tag:k8s"), ",")
	if err := validTags("PROXY_TAGS", o.tags); err != nil {
		return err
	}
	o.defaultClass = env("PROXY_DEFAULT_CLASS")
	return nil
}

// controllers returns the controllers, or nil if they are not wanted.
func (o *operatorOptions) controllers(cluster *rest.Config, log *slog.Logger) *controller.Controllers {
	if !o.controller.on {
		return nil
	}
	return controller.New(controller.Config{
		API: o.api, Cluster: cluster, DefaultClass: o.controller.defaultClass, Impersonator: o.impersonator,
		InstallCRDs: o.controller.installCRDs, LeaderElectionID: o.controller.leaderElectionID, Log: log,
		LoginServer: o.loginServer, Namespace: o.namespace, Operator: o.controller.name, Release: o.controller.release, Tags: o.controller.tags,
		WorkloadsDir: o.controller.workloadsDir,
	})
}

// runControllers runs controllers, if there are any, until ctx is done. wait returns when
// they have ended.
func runControllers(ctx context.Context, c *controller.Controllers) (wait func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c != nil {
			c.Run(ctx)
		}
	}()
	return func() { <-done }
}

// controllerChecks returns the checks of controllers, if there are any. They never fail: a
// pod whose controllers do not work serves its proxy, and nothing in the cluster would
// mend them by sending it no requests.
func controllerChecks(c *controller.Controllers) []health.Check {
	if c == nil {
		return nil
	}
	return []health.Check{{Name: health.CheckControllers, Warn: c.Warning}, {Name: health.CheckTailscaleAPI, Warn: c.APIWarning}}
}

// withControllers returns the metrics of a registry and those of the controllers, which
// have a registry of their own. Both have those of the process.
func withControllers(own prometheus.Gatherer) prometheus.Gatherer {
	return prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		families, err := own.Gather()
		if err != nil {
			return families, err
		}
		known := make(map[string]bool, len(families))
		for _, f := range families {
			known[f.GetName()] = true
		}
		more, err := ctrlmetrics.Registry.Gather()
		for _, f := range more {
			if !known[f.GetName()] {
				families = append(families, f)
			}
		}
		return families, err
	})
}

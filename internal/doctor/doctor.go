// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"time"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"

	"github.com/tailhelm/tailhelm/internal/kubeconfig"
)

// Names of the steps, in their order.
const (
	StepTailscaled = "tailscaled"
	StepName       = "name"
	StepConnect    = "connect"
	StepTLS        = "tls"
	StepVersion    = "version"
	StepIdentity   = "identity"
	StepKubeconfig = "kubeconfig"
)

// Status is how a step ended.
type Status string

// How steps end. A step that was not tried may have something to say all the same.
const (
	OK       Status = "ok"
	Failed   Status = "fail"
	NotTried Status = "not-tried"
)

// Step is what one step found. The names of its fields in JSON are stable.
type Step struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Found is what is, Advice what to do about it. Parts of them are what servers said.
	Found  string `json:"found"`
	Advice string `json:"advice"`
}

// Report is what a run found. The names of its fields in JSON are stable.
type Report struct {
	// Server is the proxy's address, as far as it is known.
	Server string `json:"server"`
	// OK says that no step failed.
	OK    bool   `json:"ok"`
	Steps []Step `json:"steps"`
}

// Tailscaled is what the device's tailscaled is asked.
// [tailscale.com/client/local.Client] has it.
type Tailscaled interface {
	Status(context.Context) (*ipnstate.Status, error)
	GetPrefs(context.Context) (*ipn.Prefs, error)
}

// Doctor has what a run needs of the device.
type Doctor struct {
	Tailscaled Tailscaled
	// Lookup finds the addresses of a name, as kubectl would.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// Dial connects to host:port, as kubectl would.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Kubeconfig returns the device's kubeconfig, merged, with absolute paths.
	Kubeconfig func() (*clientcmdapi.Config, error)
	// Timeout bounds the run. A step gets a third of it at most.
	Timeout time.Duration
}

// run is a run, and what the steps before have found.
type run struct {
	Doctor
	target kubeconfig.Target
	config *clientcmdapi.Config

	status *ipnstate.Status
	prefs  *ipn.Prefs
	place  *place
	conn   net.Conn
	client *http.Client
	noauth bool // the proxy is in that mode
}

// Run tries the way to target, which may have a short name. It returns within the timeout,
// or when ctx ends.
func (d Doctor) Run(ctx context.Context, target kubeconfig.Target) Report {
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	config, configErr := d.Kubeconfig()
	if configErr != nil {
		config = clientcmdapi.NewConfig()
	}
	r := &run{Doctor: d, target: target, config: config}
	defer r.close()
	report := Report{OK: true}
	for _, step := range []struct {
		name string
		try  func(context.Context) Step
	}{
		{StepTailscaled, r.askTailscaled},
		{StepName, r.resolve},
		{StepConnect, r.connect},
		{StepTLS, r.handshake},
		{StepVersion, r.askVersion},
		{StepIdentity, r.askIdentity},
	} {
		s := Step{Status: NotTried}
		if report.OK {
			s = within(ctx, d.Timeout/3, step.try)
		}
		s.Name = step.name
		report.OK = report.OK && s.Status != Failed
		report.Steps = append(report.Steps, s)
	}
	s := r.readKubeconfig(configErr)
	s.Name = StepKubeconfig
	report.OK = report.OK && s.Status != Failed
	report.Steps = append(report.Steps, s)
	report.Server = r.target.URL()
	return report
}

// within tries a step within a time.
func within(ctx context.Context, d time.Duration, try func(context.Context) Step) Step {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return try(ctx)
}

func (r *run) close() {
	if r.conn != nil {
		_ = r.conn.Close() // nothing was written to it
	}
	if r.client != nil {
		r.client.CloseIdleConnections()
	}
}

func ok(found string) Step           { return Step{Status: OK, Found: found} }
func fail(found, advice string) Step { return Step{Status: Failed, Found: found, Advice: advice} }

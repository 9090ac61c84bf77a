// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/tailhelm/tailhelm/test/tailhelm"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// proxyTag tags the devices of proxies.
const proxyTag = "tag:k8s"

// proxy is a running "tailhelm proxy".
type proxy struct {
	*tailhelm.Process
	tailnet *tailnet.Tailnet
	// host is the device's FQDN.
	host string
	// scheme is https, or http with --tls off.
	scheme string
}

// proxyOptions say how a proxy differs from the usual: mode auth, on the shared
// tailnet, in front of the shared cluster.
type proxyOptions struct {
	hostname   string
	dir        string // for state and files
	tailnet    *tailnet.Tailnet
	kubeconfig string
	mode       string
	authKey    string // a good one if empty
	args       []string
}

// command is the command line for o.
func (o proxyOptions) command() (tailhelm.Command, error) {
	key := cmp.Or(o.authKey, o.tailnet.AuthKey(tailnet.Identity{Tags: []string{proxyTag}}))
	keyFile := filepath.Join(o.dir, o.hostname+".authkey")
	if err := os.WriteFile(keyFile, []byte(key+"\n"), 0o600); err != nil {
		return tailhelm.Command{}, err
	}
	args := []string{
		"proxy", "--hostname", o.hostname, "--mode", o.mode, "--kubeconfig", o.kubeconfig, "--login-server", o.tailnet.URL(),
		"--state-dir", filepath.Join(o.dir, o.hostname+".state"), "--auth-key-file", keyFile, "--metrics-address", "127.0.0.1:0",
	}
	return tailhelm.Command{Path: shared.program, Args: append(args, o.args...), Env: environ(o.tailnet, o.dir)}, nil
}

// environ is the environment of a tailhelm process.
func environ(tn *tailnet.Tailnet, home string) []string {
	return append(tn.Environ(), "HOME="+home, "PATH="+os.Getenv("PATH"))
}

// startProxy starts a proxy. It does not wait until the proxy is ready.
func startProxy(ctx context.Context, o proxyOptions) (*proxy, error) {
	if o.tailnet == nil {
		o.tailnet = shared.tailnet
	}
	o.kubeconfig, o.mode = cmp.Or(o.kubeconfig, shared.impersonator), cmp.Or(o.mode, "auth")
	command, err := o.command()
	if err != nil {
		return nil, err
	}
	process, err := tailhelm.Start(context.WithoutCancel(ctx), command)
	if err != nil {
		return nil, err
	}
	p := &proxy{Process: process, tailnet: o.tailnet, host: o.hostname + "." + o.tailnet.Domain(), scheme: "https"}
	if strings.Contains(strings.Join(o.args, " "), "--tls off") {
		p.scheme = "http"
	}
	return p, nil
}

// newProxy starts a proxy for a test. It is stopped when the test ends, and fails
// the test if it ends otherwise than it should. It may not be ready yet.
func newProxy(t *testing.T, o proxyOptions) *proxy {
	t.Helper()
	if o.hostname == "" {
		o.hostname = unique("proxy")
	}
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	p, err := startProxy(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.stop(context.Background()); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", o.hostname, strings.Join(p.Log(), "\n"))
		}
	})
	return p
}

// newReadyProxy is newProxy, and waits until the proxy is ready.
func newReadyProxy(t *testing.T, o proxyOptions) *proxy {
	t.Helper()
	p := newProxy(t, o)
	if err := p.WaitReady(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	return p
}

// stop ends the process, if it has not ended. Its error is not nil if the process
// ends with another status than 0 or had a data race.
func (p *proxy) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := p.Stop(ctx)
	if log := strings.Join(p.Log(), "\n"); strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic") {
		err = errors.Join(err, fmt.Errorf("tailhelm had a data race or panicked:\n%s", log))
	}
	return err
}

// catchUp waits until the proxy's device has had everything that the control server
// had to say: its answer to a later message proves that. A device that it does not
// know yet would be a stranger, who is not answered and tries again seconds later.
func (p *proxy) catchUp(t *testing.T) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://unused/echo", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(p.host, ".")
	res, err := p.tailnet.C2N(within(t, patience), name, r)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
}

// url is the address of a path.
func (p *proxy) url(path string) string { return p.scheme + "://" + p.host + path }

// logEntry is a line of the log that tells of a request.
type logEntry struct {
	Msg, User, Node, Address, Kind, Method, Verb, Resource, Subresource, Namespace, Name, Path, Refused, Error, AuditID, Recording, Recorder string

	Groups               []string
	Code                 int
	Seconds              float64
	Bytes, BytesReceived int64
}

// waitRequest waits for the log's line of a request that has ended.
func (p *proxy) waitRequest(t *testing.T, match func(logEntry) bool) logEntry {
	t.Helper()
	return p.waitRequestWithin(within(t, patience), t, match)
}

// waitRequestWithin is waitRequest with another patience.
func (p *proxy) waitRequestWithin(ctx context.Context, t *testing.T, match func(logEntry) bool) logEntry {
	t.Helper()
	var found logEntry
	_, err := p.WaitLog(ctx, func(line string) bool {
		var e logEntry
		if json.Unmarshal([]byte(line), &e) != nil || e.Msg != "request" || !match(e) {
			return false
		}
		found = e
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// metrics are the proxy's metrics by name.
func (p *proxy) metrics(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	code, body, err := p.Get(within(t, patience), "/metrics")
	if err != nil || code != 200 {
		t.Fatalf("/metrics: %d %v", code, err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatalf("/metrics: %v", err)
	}
	return families
}

// metric is the sum of a counter or gauge over the series with the given labels,
// each as name=value. For a histogram it is the count.
func (p *proxy) metric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	sum := 0.0
	for _, m := range p.metrics(t)[name].GetMetric() {
		if hasLabels(m, labels) {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return sum
}

func hasLabels(m *dto.Metric, labels []string) bool {
	for _, want := range labels {
		found := false
		for _, l := range m.GetLabel() {
			found = found || l.GetName()+"="+l.GetValue() == want
		}
		if !found {
			return false
		}
	}
	return true
}

// waitMetric waits until a metric has a value.
func (p *proxy) waitMetric(t *testing.T, want float64, name string, labels ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s%v = %v", name, labels, want), func() bool {
		return p.metric(t, name, labels...) == want
	})
}

// readyz waits until /readyz?verbose says something, and returns all that it says.
func (p *proxy) readyz(t *testing.T, words ...string) string {
	t.Helper()
	body, err := p.WaitReadyz(within(t, patience), func(_ int, body string) bool {
		for _, w := range words {
			if !strings.Contains(body, w) {
				return false
			}
		}
		return true
	})
	if err != nil {
		t.Fatalf("waiting for %q: %v", words, err)
	}
	return body
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx := within(t, patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %v", what, ctx.Err())
		case <-tick.C:
		}
	}
}

// within is a context for the test and a time.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

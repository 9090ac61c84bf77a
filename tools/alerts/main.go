// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Command alerts runs the alerting rules of a PrometheusRule (among other objects, on its
// standard input) in Prometheus' own engine, over made-up samples, and fails unless each
// alert fires when it should and stays silent when it should not:
//
//	helm template ... | alerts cases.yaml
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/promqltest"
	"go.yaml.in/yaml/v3"
)

// file is what there is to check.
type file struct {
	// Healthy are the samples under which no alert fires, in the form of promqltest.
	Healthy string
	// Alerts are samples that make each alert fire: all that there are, for each way in which it must.
	Alerts map[string][]string
}

// rule is an alerting rule.
type rule struct {
	Alert, Expr string
}

// object is a Kubernetes object, of which only PrometheusRules have rules.
type object struct {
	Kind string
	Spec struct {
		Groups []struct{ Rules []rule }
	}
}

// at is when alerts are asked for: there are samples before it.
const at = time.Hour

func main() {
	flag.Parse()
	if err := run(context.Background(), os.Stdin, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "alerts:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, in io.Reader, path string) error {
	rules, err := readRules(in)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return err
	}
	var f file
	if err := yaml.Unmarshal(b, &f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var errs []error
	for _, r := range rules {
		errs = append(errs, check(ctx, r, f))
	}
	if len(rules) == 0 {
		errs = append(errs, errors.New("there are no rules"))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Printf("%d alerts fire when they should, and only then\n", len(rules))
	return nil
}

// check returns what is wrong with a rule.
func check(ctx context.Context, r rule, f file) error {
	if len(f.Alerts[r.Alert]) == 0 {
		return fmt.Errorf("there are no samples for alert %s", r.Alert)
	}
	quiet, err := fires(ctx, r, f.Healthy)
	errs := []error{err}
	if quiet {
		errs = append(errs, fmt.Errorf("%s fires when all is well", r.Alert))
	}
	for i, samples := range f.Alerts[r.Alert] {
		loud, err := fires(ctx, r, samples)
		errs = append(errs, err)
		if !loud {
			errs = append(errs, fmt.Errorf("%s does not fire, in way %d", r.Alert, i+1))
		}
	}
	return errors.Join(errs...)
}

func readRules(in io.Reader) ([]rule, error) {
	var rules []rule
	b, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	for decoder := yaml.NewDecoder(bytes.NewReader(b)); ; {
		var o object
		if err := decoder.Decode(&o); errors.Is(err, io.EOF) {
			return rules, nil
		} else if err != nil {
			return nil, fmt.Errorf("the rendered chart: %w", err)
		}
		if o.Kind != "PrometheusRule" {
			continue
		}
		for _, g := range o.Spec.Groups {
			rules = append(rules, g.Rules...)
		}
	}
}

// fires reports whether a rule's expression is true of something, with the given samples.
func fires(ctx context.Context, r rule, samples string) (bool, error) {
	t := &failure{}
	storage := promqltest.LoadedStorage(t, "load 1m\n"+indent(samples))
	if t.err != nil {
		return false, fmt.Errorf("samples of %s: %w", r.Alert, t.err)
	}
	defer func() { _ = storage.Close() }()
	engine := promqltest.NewTestEngineWithOpts(t, promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute})
	query, err := engine.NewInstantQuery(ctx, storage, nil, r.Expr, time.Unix(0, 0).Add(at))
	if err != nil {
		return false, fmt.Errorf("expression of %s: %w", r.Alert, err)
	}
	defer query.Close()
	result := query.Exec(ctx)
	if result.Err != nil {
		return false, fmt.Errorf("expression of %s: %w", r.Alert, result.Err)
	}
	vector, err := result.Vector()
	return len(vector) > 0, err
}

func indent(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("  " + line)
	}
	return b.String()
}

// failure is a testing.TB that remembers how it failed.
type failure struct {
	testing.TB
	err error
}

func (f *failure) Helper()                           {}
func (f *failure) Cleanup(func())                    {}
func (f *failure) Name() string                      { return "alerts" }
func (f *failure) Fatal(args ...any)                 { f.err = errors.New(fmt.Sprint(args...)) }
func (f *failure) Fatalf(format string, args ...any) { f.err = fmt.Errorf(format, args...) }

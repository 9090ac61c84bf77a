// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	texttemplate "text/template"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// alert is an alerting rule.
type alert struct {
	Alert, Expr         string
	Labels, Annotations map[string]string
}

// alerts renders all alerts that there are, with helm's arguments.
func alerts(t *testing.T, args ...string) []alert {
	t.Helper()
	args = append([]string{"operator", chart, "--namespace", "tailscale", "--values", "testdata/alerts.values.yaml", "--show-only", "templates/metrics-prometheusrule.yaml"}, args...)
	var rule struct {
		Spec struct {
			Groups []struct{ Rules []alert }
		}
	}
	if err := yaml.Unmarshal([]byte(template(t, args...)), &rule); err != nil {
		t.Fatal(err)
	}
	var all []alert
	for _, group := range rule.Spec.Groups {
		all = append(all, group.Rules...)
	}
	return all
}

// TestEachAlertHasItsRunbook compares the alerts with the sections of the runbooks, and with the names that
// metrics.prometheusRule.disabled takes.
func TestEachAlertHasItsRunbook(t *testing.T) {
	b, err := os.ReadFile(root + "/docs/runbooks.md")
	if err != nil {
		t.Fatal(err)
	}
	var sections []string
	for _, heading := range regexp.MustCompile(`(?m)^## (Tailhelm\w*)$`).FindAllSubmatch(b, -1) {
		sections = append(sections, string(heading[1]))
	}
	var names []string
	for _, a := range alerts(t) {
		names = append(names, a.Alert)
		// GitHub makes the anchor of a heading that is one word by lowering it.
		if want := "https://github.com/tailhelm/tailhelm/blob/main/docs/runbooks.md#" + strings.ToLower(a.Alert); a.Annotations["runbook_url"] != want {
			t.Errorf("the runbook of %s is %q, want %q", a.Alert, a.Annotations["runbook_url"], want)
		}
	}
	slices.Sort(names)
	slices.Sort(sections)
	if diff := cmp.Diff(names, sections); diff != "" {
		t.Errorf("docs/runbooks.md does not have one section for each alert (-alerts +sections):\n%s", diff)
	}
	disabled := readSchema(t).Properties["metrics"].Properties["prometheusRule"].Properties["disabled"]
	if diff := cmp.Diff(names, sorted(disabled.Properties)); diff != "" {
		t.Errorf("the schema of metrics.prometheusRule.disabled does not name the alerts (-alerts +schema):\n%s", diff)
	}
}

// TestRunbookLinks finds links of the runbooks that lead nowhere.
func TestRunbookLinks(t *testing.T) {
	anchors := map[string]map[string]bool{}
	for _, name := range []string{"docs/runbooks.md", "docs/proxygroup.md", "README.md"} {
		b, err := os.ReadFile(root + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		anchors[name] = map[string]bool{"": true}
		for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(b), -1) {
			anchor := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(heading[1]), "")
			anchors[name][strings.ReplaceAll(anchor, " ", "-")] = true
		}
	}
	b, err := os.ReadFile(root + "/docs/runbooks.md")
	if err != nil {
		t.Fatal(err)
	}
	links := regexp.MustCompile(`\]\(([^)#]*)#?([^)]*)\)`).FindAllStringSubmatch(string(b), -1)
	if len(links) == 0 {
		t.Fatal("there are no links")
	}
	for _, link := range links {
		file := map[string]string{"": "docs/runbooks.md", "proxygroup.md": "docs/proxygroup.md", "../README.md": "README.md"}[link[1]]
		if !anchors[file][link[2]] {
			t.Errorf("docs/runbooks.md links to %s, which is not there", link[0])
		}
	}
}

// TestRefusalsHaveTheirMeaning compares the reasons of refusals with the table of the runbooks, and those that alerts name
// with the reasons.
func TestRefusalsHaveTheirMeaning(t *testing.T) {
	source, err := os.ReadFile(root + "/internal/apiproxy/refusal.go")
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\treason\w+\s+= "([a-z_]+)"`).FindAllSubmatch(source, -1) {
		reasons[string(m[1])] = true
	}
	runbooks, err := os.ReadFile(root + "/docs/runbooks.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| [0-9]").FindAllSubmatch(runbooks, -1) {
		rows[string(m[1])] = true
	}
	if diff := cmp.Diff(sorted(reasons), sorted(rows)); diff != "" || len(rows) == 0 {
		t.Errorf("docs/runbooks.md does not explain the reasons of refusals (-program +table):\n%s", diff)
	}
	matcher := regexp.MustCompile(`reason=~"([^"]*)"`)
	for _, a := range alerts(t) {
		for _, m := range matcher.FindAllStringSubmatch(a.Expr, -1) {
			for reason := range strings.SplitSeq(m[1], "|") {
				if !reasons[reason] {
					t.Errorf("%s is about the reason %q, which the program has not", a.Alert, reason)
				}
			}
			if logged := loggedReasons(string(runbooks), a.Alert); logged != "" && logged != m[1] {
				t.Errorf("%s is about the reasons %s, and its runbook looks in the log for %s", a.Alert, m[1], logged)
			}
		}
	}
}

// loggedReasons returns the reasons that the section of an alert looks for in the log, as in a regular expression, or "".
func loggedReasons(runbooks, alert string) string {
	_, section, _ := strings.Cut(runbooks, "\n## "+alert+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	if m := regexp.MustCompile(`"refused":"\(([a-z_|]+)\)"`).FindStringSubmatch(section); m != nil {
		return m[1]
	}
	return ""
}

// TestDescriptionsHaveTheirLabels executes what alerts say with the labels that their expressions leave.
func TestDescriptionsHaveTheirLabels(t *testing.T) {
	for _, a := range alerts(t) {
		for name, text := range a.Annotations {
			said, err := say(text, a.Expr)
			if err != nil {
				t.Errorf("%s of %s: %v", name, a.Alert, err)
			}
			if asks := strings.Contains(text, "tailhelm_check_failing"); asks != strings.Contains(said, "What fails: tailnet, apiserver. ") {
				t.Errorf("%s of %s does not name the checks that fail: %s", name, a.Alert, said)
			}
		}
	}
}

// TestDescriptionsSeeMistakes keeps the test above from passing because it sees nothing.
func TestDescriptionsSeeMistakes(t *testing.T) {
	for expr, has := range map[string]bool{
		`tailhelm_ready{a="b"} == 0`:                                                 true,
		`max by (namespace, pod) (x) > 0`:                                            true,
		`sum by (pod) (x) / sum by (pod) (y) > 0 and sum by (namespace) (z) > 1`:     true,
		`absent(x{pod="a"})`:                                                         true,
		`absent(x{pod=""})`:                                                          false,
		`absent(x{pod=~"a"})`:                                                        false,
		`sum by (namespace) (max by (namespace, pod) (x)) > 0`:                       false,
		`sum by (pod) (x) > 0 or sum by (namespace) (x) > 0`:                         false,
		`histogram_quantile(0.9, sum by (namespace, le) (rate(x{pod="a"}[5m]))) > 1`: false,
	} {
		said, err := say("{{ $labels.pod }}", expr)
		if has != (err == nil) || has && said != "pod's value" {
			t.Errorf("%s: it says %q, %v", expr, said, err)
		}
	}
	if _, err := say("{{ $labels.pod }}", "topk(1, x)"); err == nil {
		t.Error("an expression that nobody knows is taken for known")
	}
}

// TestAlertValues sets what all alerts have, and leaves some out.
func TestAlertValues(t *testing.T) {
	all := alerts(t)
	critical := 0
	for _, a := range all {
		if a.Labels["severity"] == "critical" {
			critical++
		}
	}
	if critical == 0 || critical == len(all) {
		t.Errorf("%d of %d alerts are critical", critical, len(all))
	}
	few := alerts(t, "--set", "metrics.prometheusRule.disabled.TailhelmSlow=true,metrics.prometheusRule.disabled.TailhelmDown=false,metrics.prometheusRule.runbookUrl=",
		"--set", "metrics.prometheusRule.alertLabels.severity=info,metrics.prometheusRule.alertAnnotations.dashboard=here,metrics.prometheusRule.alertAnnotations.summary=own")
	if len(few) != len(all)-1 {
		t.Errorf("there are %d alerts without one, and %d with it", len(few), len(all))
	}
	for _, a := range few {
		if a.Alert == "TailhelmSlow" {
			t.Error("an alert that is disabled is there")
		}
		if _, ok := a.Annotations["runbook_url"]; ok || a.Labels["severity"] != "info" || a.Annotations["dashboard"] != "here" || a.Annotations["summary"] != "own" || a.Annotations["description"] == "" {
			t.Errorf("%s has the labels %v and annotations %v", a.Alert, a.Labels, a.Annotations)
		}
	}
}

// sample is one answer to a query of a template, as Prometheus gives it.
type sample struct{ Labels map[string]string }

// say executes an annotation as Prometheus does, with a value for each label that expr leaves. A label that it drops is an
// error; Prometheus would leave it empty.
func say(text, expr string) (string, error) {
	names, err := labelsOf(expr)
	if err != nil {
		return "", err
	}
	labels := map[string]string{}
	for name := range names {
		labels[name] = name + "'s value"
	}
	same := func(value any) any { return value }
	parsed, err := texttemplate.New("").Option("missingkey=error").Funcs(texttemplate.FuncMap{
		"humanize1024": same, "humanizeDuration": same, "humanizePercentage": same,
		"query": func(string) []sample {
			return []sample{{map[string]string{"check": "tailnet"}}, {map[string]string{"check": "apiserver"}}}
		},
	}).Parse("{{ $labels := .Labels }}{{ $value := .Value }}" + text)
	if err != nil {
		return "", err
	}
	var said strings.Builder
	err = parsed.Execute(&said, map[string]any{"Labels": labels, "Value": 1.5})
	return said.String(), err
}

// labelsOf returns the labels of what an expression of PromQL is true of, as far as alerts here go: comparisons of
// aggregations "by" labels, of plain samples and of absent samples, and those joined.
func labelsOf(expr string) (map[string]bool, error) {
	sides := outside(expr, " or ")
	labels, err := labelsOfOperand(sides[0])
	for _, side := range sides[1:] {
		more, also := labelsOfOperand(side)
		err = errors.Join(err, also)
		maps.DeleteFunc(labels, func(name string, _ bool) bool { return !more[name] })
	}
	return labels, err
}

var (
	aggregated = regexp.MustCompile(`^(?:sum|min|max|count) by \(([^)]*)\) \(`)
	absent     = regexp.MustCompile(`^absent\(\w+{(.*)}\)$`)
	equality   = regexp.MustCompile(`(\w+)="[^"]+"`)
	quantile   = regexp.MustCompile(`^histogram_quantile\([0-9.]+, (.*)\)$`)
	plain      = regexp.MustCompile(`^\w+{[^}]*}$`)
)

// labelsOfOperand is labelsOf without alternatives. An operator leaves the labels of its left side.
func labelsOfOperand(expr string) (map[string]bool, error) {
	for _, operator := range []string{" and ", " == ", " < ", " > ", " / "} {
		expr = outside(expr, operator)[0]
	}
	labels := map[string]bool{}
	if m := aggregated.FindStringSubmatch(expr); m != nil {
		for name := range strings.SplitSeq(m[1], ", ") {
			labels[name] = true
		}
		return labels, nil
	}
	if m := absent.FindStringSubmatch(expr); m != nil {
		for _, matcher := range equality.FindAllStringSubmatch(m[1], -1) {
			labels[matcher[1]] = true
		}
		return labels, nil
	}
	if m := quantile.FindStringSubmatch(expr); m != nil {
		labels, err := labelsOfOperand(m[1])
		delete(labels, "le")
		return labels, err
	}
	if plain.MatchString(expr) { // all that Prometheus gives a target, and that its metric has
		return map[string]bool{"namespace": true, "pod": true}, nil
	}
	return nil, fmt.Errorf("this test does not know which labels %q has: teach it", expr)
}

// outside splits an expression at an operator, where it is outside of parentheses, braces and strings.
func outside(expr, operator string) []string {
	var parts []string
	depth, start, quoted := 0, 0, false
	for i, c := range expr {
		switch {
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '(' || c == '{':
			depth++
		case c == ')' || c == '}':
			depth--
		case depth == 0 && i >= start && strings.HasPrefix(expr[i:], operator):
			parts = append(parts, expr[start:i])
			start = i + len(operator)
		}
	}
	return append(parts, expr[start:])
}

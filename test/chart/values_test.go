// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEveryValueIsUsed finds values that no template reads, and reads of values that
// values.yaml lacks.
func TestEveryValueIsUsed(t *testing.T) {
	values := readValues(t, chart+"/values.yaml")
	u, err := analyze(chart + "/templates")
	if err != nil {
		t.Fatal(err)
	}
	for path, where := range u.reads {
		if !exists(values, strings.Split(path, ".")) {
			t.Errorf("%s reads .Values.%s, which values.yaml lacks", where, path)
		}
	}
	for _, leaf := range leaves(values, nil) {
		if !u.uses(leaf) {
			t.Errorf("no template reads the value %s", leaf)
		}
	}
}

// TestAnalysisSeesMistakes keeps the test above from passing because it sees nothing.
func TestAnalysisSeesMistakes(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.yaml": `{{ $c := .Values.config }}{{ with $c.image }}{{ .tag }}{{ end }}{{ include "f" (dict "root" . "x" $c.given) }}
			{{ range .Values.list }}{{ .name }}{{ $.Values.inRange }}{{ end }}{{ toYaml $c.whole }}{{ if .Values.condition }}{{ end }}`,
		"_b.tpl": `{{ define "f" }}{{ .root.Values.included }}{{ .x.deep }}{{ end }}{{ define "unused" }}{{ .Values.never }}{{ end }}`,
	} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	u, err := analyze(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"config.image.tag", "config.given.deep", "included", "inRange", "list", "condition", "config.whole.anything"} {
		if !u.uses(path) {
			t.Errorf("%s is not seen", path)
		}
	}
	for _, path := range []string{"config.image.repository", "config.other", "never"} {
		if u.uses(path) {
			t.Errorf("%s is seen, but nothing reads it", path)
		}
	}
}

// schema is what the tests look at in a JSON schema.
type schema struct {
	Ref                  string            `json:"$ref"`
	Type                 any               `json:"type"`
	Properties           map[string]schema `json:"properties"`
	AdditionalProperties json.RawMessage   `json:"additionalProperties"`
	Items                *schema           `json:"items"`
	Definitions          map[string]schema `json:"definitions"`
}

func readSchema(t *testing.T) schema {
	t.Helper()
	b, err := os.ReadFile(chart + "/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var s schema
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSchemaHasTheValues compares the names in the schema with those in values.yaml.
func TestSchemaHasTheValues(t *testing.T) {
	s := readSchema(t)
	delete(s.Properties, "global")  // Helm's own
	delete(s.Properties, "crds")    // Helm's own, for the subchart
	delete(s.Properties, "enabled") // of a chart that contains this one
	compare(t, "", s, readValues(t, chart+"/values.yaml"))
}

func compare(t *testing.T, path string, s schema, values map[string]any) {
	t.Helper()
	for name, value := range values {
		property, ok := s.Properties[name]
		if !ok {
			t.Errorf("the schema lacks %s%s", path, name)
			continue
		}
		// What Kubernetes defines, and maps of the user's own names, have no values of ours.
		if below, ok := value.(map[string]any); ok && property.Ref == "" && property.Properties != nil {
			if len(below) == 0 {
				continue
			}
			compare(t, path+name+".", property, below)
		}
	}
	for name := range s.Properties {
		if _, ok := values[name]; !ok {
			t.Errorf("values.yaml lacks %s%s, which the schema has", path, name)
		}
	}
}

// TestSchemaIsStrict finds objects in the schema that take any name.
func TestSchemaIsStrict(t *testing.T) {
	// Free by their nature: values of other charts, and objects of any kind. The last is
	// Kubernetes' description of an object without fields.
	free := []string{"global", "crds.global", "extraObjects[]", "definition io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1"}
	var walk func(path string, s schema)
	walk = func(path string, s schema) {
		isObject := s.Type == "object" || s.Properties != nil
		if types, ok := s.Type.([]any); ok {
			isObject = slices.Contains(types, any("object"))
		}
		if isObject && (s.AdditionalProperties == nil || string(s.AdditionalProperties) == "true") && !slices.Contains(free, path) {
			t.Errorf("%s takes any name", path)
		}
		for name, property := range s.Properties {
			walk(strings.TrimPrefix(path+"."+name, "."), property)
		}
		if s.Items != nil {
			walk(path+"[]", *s.Items)
		}
		for name, definition := range s.Definitions {
			walk("definition "+name, definition)
		}
	}
	walk("", readSchema(t))
}

// ownDefaults are the defaults that are not those of the official chart, and why.
var ownDefaults = map[string]string{
	"operatorConfig.podSecurityContext": "it meets the restricted Pod Security level",
	"operatorConfig.securityContext":    "it meets the restricted Pod Security level",
	"operatorConfig.image.pullPolicy":   "a pod starts on a node that has the image, also while the registry is away",
}

// TestOfficialValues compares the defaults with those of the official chart, whose values files must do here.
func TestOfficialValues(t *testing.T) {
	const file = "testdata/official.values.yaml"
	values := readValues(t, chart+"/values.yaml")
	official := readValues(t, file)
	for _, leaf := range leaves(official, nil) {
		path := strings.Split(leaf, ".")
		if strings.HasPrefix(leaf, "operatorConfig.nodeSelector.") {
			path = []string{"operatorConfig", "nodeSelector", "kubernetes.io/os"}
		}
		want, got := at(official, path), at(values, path)
		if _, ok := ownDefaults[leaf]; ok {
			if cmp.Equal(got, want) {
				t.Errorf("the default of %s is %v, as in the official chart: take it out of ownDefaults", leaf, got)
			}
			want = got
		}
		if !exists(values, path) || !cmp.Equal(got, want) {
			t.Errorf("the default of %s is %v, want %v as in the official chart", leaf, got, want)
		}
	}
	// An empty map of a values file takes nothing away, so of ownDefaults that file changes one.
	if got, want := template(t, "release", chart, "--values", file, "--set", "operatorConfig.image.pullPolicy=IfNotPresent"), template(t, "release", chart); got != want {
		t.Errorf("the defaults of the official chart change something (-without +with):\n%s", cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")))
	}
}

// at returns what values have at a path.
func at(values map[string]any, path []string) any {
	var value any = values
	for _, name := range path {
		below, _ := value.(map[string]any)
		value = below[name]
	}
	return value
}

// TestMetricsExist finds metrics in the alerts and the dashboard that the program has not.
func TestMetricsExist(t *testing.T) {
	known := map[string]bool{}
	const proxy, recorder = "tailhelm_apiproxy_", "tailhelm_recorder_"
	for path, prefixes := range map[string][]string{
		"internal/apiproxy/metrics.go": {proxy}, "internal/cli/serve.go": {"tailhelm_"}, "internal/limit/listener.go": {proxy, recorder},
		"internal/recorder/handler.go": {recorder}, "internal/recorder/metrics.go": {recorder}, "internal/cli/recorder.go": {recorder},
		"internal/health/metrics.go": {""},
	} {
		b, err := os.ReadFile(root + "/" + path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?:Name: |gauge\()"([a-z_]+)"`).FindAllSubmatch(b, -1) {
			for _, prefix := range prefixes {
				known[prefix+string(m[1])] = true
			}
		}
		for _, m := range regexp.MustCompile(`"(tailhelm_[a-z_]+)"`).FindAllSubmatch(b, -1) {
			known[string(m[1])] = true
		}
	}
	for _, path := range []string{"dashboards/tailhelm.json", "templates/_alerts.tpl"} {
		b, err := os.ReadFile(chart + "/" + path)
		if err != nil {
			t.Fatal(err)
		}
		names := regexp.MustCompile(`tailhelm_[a-z_]+`).FindAllString(string(b), -1)
		if len(names) == 0 {
			t.Errorf("%s has no metrics", path)
		}
		for _, name := range names {
			if !known[strings.TrimSuffix(name, "_bucket")] {
				t.Errorf("%s has the metric %s, which the program has not", path, name)
			}
		}
	}
}

// TestLinks finds links of the README and of Chart.yaml that lead nowhere: from a packaged chart, only
// whole addresses lead somewhere, and those of this repository must be of something in it.
func TestLinks(t *testing.T) {
	const repository = "https://github.com/tailhelm/tailhelm"
	address := regexp.MustCompile(regexp.QuoteMeta(repository) + `/(?:blob|tree)/main/([^\s)#]+)`)
	for _, name := range []string{"README.md", "Chart.yaml"} {
		b, err := os.ReadFile(chart + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range regexp.MustCompile(`\]\(([^)]*)\)`).FindAllSubmatch(b, -1) {
			if to := string(link[1]); !strings.HasPrefix(to, "https://") && !strings.HasPrefix(to, "#") {
				t.Errorf("%s links to %s, which is no whole address", name, to)
			}
		}
		found := address.FindAllSubmatch(b, -1)
		if len(found) == 0 {
			t.Errorf("%s has no link to the repository", name)
		}
		for _, link := range found {
			if _, err := os.Stat(root + "/" + string(link[1])); err != nil {
				t.Errorf("%s links to what is not there: %v", name, err)
			}
		}
	}
}

// exists reports whether values has path, or a place where users put what they like.
func exists(values any, path []string) bool {
	if len(path) == 0 {
		return true
	}
	switch v := values.(type) {
	case map[string]any:
		if below, ok := v[path[0]]; ok {
			return exists(below, path[1:])
		}
		return len(v) == 0
	case []any:
		return true
	}
	return false
}

// leaves returns the paths of all values that are not maps with something in them.
func leaves(values map[string]any, prefix []string) []string {
	var all []string
	for name, value := range values {
		path := append(slices.Clone(prefix), name)
		if below, ok := value.(map[string]any); ok && len(below) > 0 {
			all = append(all, leaves(below, path)...)
			continue
		}
		all = append(all, strings.Join(path, "."))
	}
	return all
}

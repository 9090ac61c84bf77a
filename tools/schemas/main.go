// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Command schemas makes JSON schemas of Kubernetes' types from the OpenAPI
// description that comes with the module k8s.io/kubernetes, and of this project's custom
// resources, so that nothing has to be fetched from elsewhere:
//
//	schemas -kubeconform DIR               a strict schema per kind, as kubeconform wants them
//	schemas -values FILE -defaults FILE    fill in the definitions that a values.schema.json refers
//	                                       to, and describe and require what a values.yaml has
//
// Strict means that a field that Kubernetes does not know is an error.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// module is a go.mod file that pins the version of Kubernetes.
const module = "test/kubernetes/modules/kubernetes.mod"

// object is a JSON object.
type object = map[string]any

func main() {
	kubeconform := flag.String("kubeconform", "", "folder to write a schema per kind to")
	values := flag.String("values", "", "values.schema.json to fill in")
	defaults := flag.String("defaults", "", "values.yaml of that schema")
	flag.Parse()
	if err := run(context.Background(), *kubeconform, *values, *defaults); err != nil {
		fmt.Fprintln(os.Stderr, "schemas:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconform, values, defaults string) error {
	definitions, err := kubernetes(ctx)
	if err != nil {
		return err
	}
	if kubeconform != "" {
		if err := writeKinds(kubeconform, definitions); err != nil {
			return err
		}
	}
	if values != "" {
		return fill(values, defaults, definitions)
	}
	return nil
}

// kubernetes returns the definitions of Kubernetes' types and of our own, made strict.
func kubernetes(ctx context.Context) (object, error) {
	out, err := exec.CommandContext(ctx, "go", "mod", "download", "-json", "-modfile="+module, "k8s.io/kubernetes").Output()
	if err != nil {
		return nil, fmt.Errorf("downloading k8s.io/kubernetes: %w", err)
	}
	var download struct{ Dir string }
	if err := json.Unmarshal(out, &download); err != nil {
		return nil, err
	}
	var swagger struct{ Definitions object }
	if err := read(filepath.Join(download.Dir, "api", "openapi-spec", "swagger.json"), &swagger); err != nil {
		return nil, err
	}
	for name, definition := range swagger.Definitions {
		swagger.Definitions[name] = strict(definition)
	}
	for _, name := range []string{"io.k8s.apimachinery.pkg.api.resource.Quantity", "io.k8s.apimachinery.pkg.util.intstr.IntOrString"} {
		// OpenAPI calls them strings; YAML has numbers, too.
		swagger.Definitions[name] = object{"type": []any{"string", "number"}}
	}
	if err := addCustom(swagger.Definitions); err != nil {
		return nil, err
	}
	return swagger.Definitions, nil
}

// strict returns a schema without what only people read, whose objects have no
// other properties than the named ones.
func strict(value any) any {
	switch v := value.(type) {
	case object:
		s := object{}
		for key, member := range v {
			if _, isText := member.(string); (key == "description" && isText) || strings.HasPrefix(key, "x-") || key == "format" || key == "default" {
				continue
			}
			if key == "properties" {
				s[key] = properties(member)
				continue
			}
			s[key] = strict(member)
		}
		if _, ok := s["properties"]; ok && s["additionalProperties"] == nil {
			s["additionalProperties"] = false
		}
		return s
	case []any:
		for i := range v {
			v[i] = strict(v[i])
		}
	}
	return value
}

// properties makes the schemas of properties strict, whatever their names are.
func properties(value any) any {
	named, ok := value.(object)
	if !ok {
		return value
	}
	for name, property := range named {
		named[name] = strict(property)
	}
	return named
}

// writeKinds writes a schema for each version of each kind that Kubernetes serves.
func writeKinds(dir string, definitions object) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	if err := write(filepath.Join(dir, "_definitions.json"), object{"definitions": definitions}); err != nil {
		return err
	}
	for name := range definitions {
		if file := customFile(name); file != "" {
			if err := write(filepath.Join(dir, file), object{"$ref": "_definitions.json#/definitions/" + name}); err != nil {
				return err
			}
			continue
		}
		// io.k8s.api.<group>.<version>.<Kind>
		parts := strings.Split(strings.TrimPrefix(name, "io.k8s.api."), ".")
		if !strings.HasPrefix(name, "io.k8s.api.") || len(parts) != 3 {
			continue
		}
		file := fmt.Sprintf("%s-%s-%s.json", strings.ToLower(parts[2]), parts[0], parts[1])
		if parts[0] == "core" {
			file = fmt.Sprintf("%s-%s.json", strings.ToLower(parts[2]), parts[1])
		}
		if err := write(filepath.Join(dir, file), object{"$ref": "_definitions.json#/definitions/" + name}); err != nil {
			return err
		}
	}
	return nil
}

// fill writes into a schema all definitions of Kubernetes that it refers to, takes out
// those that it does not, and describes and requires what the values.yaml at defaults has.
func fill(path, defaults string, definitions object) error {
	var schema object
	if err := read(path, &schema); err != nil {
		return err
	}
	if err := addDefaults(schema, defaults); err != nil {
		return err
	}
	filled := object{}
	own, _ := schema["definitions"].(object)
	for name, definition := range own {
		if !strings.HasPrefix(name, "io.k8s.") && !strings.HasPrefix(name, customPrefix) {
			filled[name] = definition
		}
	}
	delete(schema, "definitions")
	var missing []error
	var follow func(any)
	follow = func(value any) {
		switch v := value.(type) {
		case object:
			if ref, ok := v["$ref"].(string); ok {
				name := strings.TrimPrefix(ref, "#/definitions/")
				if _, done := filled[name]; !done {
					definition, known := definitions[name]
					if !known {
						missing = append(missing, fmt.Errorf("%s: Kubernetes has no %s", path, name))
					}
					filled[name] = definition
					follow(definition)
				}
			}
			for _, member := range v {
				follow(member)
			}
		case []any:
			for _, member := range v {
				follow(member)
			}
		}
	}
	for _, definition := range slices.Collect(maps.Values(filled)) {
		follow(definition)
	}
	follow(schema)
	schema["definitions"] = filled
	if err := errors.Join(missing...); err != nil {
		return err
	}
	return write(path, schema)
}

func read(path string, into any) error {
	b, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// write writes value as JSON, with sorted keys.
func write(path string, value any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(value); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o600)
}

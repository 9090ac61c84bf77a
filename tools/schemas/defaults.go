// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// addDefaults describes values in a schema, and makes them required, as the values.yaml at path has them.
// Helm takes null in a user's values to mean that the default is to be forgotten, before it asks the schema;
// templates would then render what nobody asked for.
func addDefaults(schema object, path string) error {
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return err
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	addValues(schema, document.Content[0])
	return nil
}

// addValues describes and requires, in an object's schema and those below it, what values has. Objects of
// Kubernetes' types, and those with names of the user's own, may be without parts of their defaults.
func addValues(schema object, values *yaml.Node) {
	properties, ok := schema["properties"].(object)
	if !ok {
		return
	}
	required := []string{}
	for i := 0; i < len(values.Content); i += 2 {
		name, value := values.Content[i], values.Content[i+1]
		property, known := properties[name.Value].(object)
		if !known {
			continue
		}
		if text := description(name.HeadComment); text != "" {
			property["description"] = text
		}
		if value.Tag == "!!null" {
			continue
		}
		required = append(required, name.Value)
		if value.Kind == yaml.MappingNode {
			addValues(property, value)
		}
	}
	slices.Sort(required)
	schema["required"] = required
}

// description returns what a comment says of the value below it, in the form that helm-docs reads.
func description(comment string) string {
	_, text, found := strings.Cut(comment, "# -- ")
	if !found {
		return ""
	}
	var lines []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "#"))
		if strings.HasPrefix(line, "@") {
			break
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, " ")
}

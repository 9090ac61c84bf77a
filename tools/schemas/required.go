// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"sigs.k8s.io/yaml"
)

// requireDefaults makes the values required that the values.yaml at path has a default for.
// Helm takes null in a user's values to mean that the default is to be forgotten, before it
// asks the schema; templates would then render what nobody asked for.
func requireDefaults(schema object, path string) error {
	text, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		return err
	}
	var defaults object
	if err := yaml.Unmarshal(text, &defaults); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	require(schema, defaults)
	return nil
}

// require makes required, in an object's schema and those below it, what defaults has. Objects of
// Kubernetes' types, and those with names of the user's own, may be without parts of their defaults.
func require(schema, defaults object) {
	properties, ok := schema["properties"].(object)
	if !ok {
		return
	}
	required := []any{}
	for _, name := range slices.Sorted(maps.Keys(defaults)) {
		if defaults[name] == nil {
			continue
		}
		required = append(required, name)
		below, isObject := defaults[name].(object)
		property, known := properties[name].(object)
		if isObject && known {
			require(property, below)
		}
	}
	schema["required"] = required
}

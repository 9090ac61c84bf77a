// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"embed"
	"fmt"
	"io/fs"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// RevisionAnnotation is the annotation of this project's CustomResourceDefinitions with a
// whole number that grows with each change of them. A definition without it is somebody
// else's, for example of the official operator.
const RevisionAnnotation = "tailhelm.github.io/revision"

//go:embed crds/*.yaml
var crds embed.FS

// CustomResourceDefinitions returns the definitions of the types of this package, as objects
// to apply.
func CustomResourceDefinitions() ([]*unstructured.Unstructured, error) {
	files, err := fs.Glob(crds, "crds/*.yaml")
	if err != nil {
		return nil, fmt.Errorf("list the embedded CustomResourceDefinitions: %w", err)
	}
	var definitions []*unstructured.Unstructured
	for _, file := range files {
		text, err := crds.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the embedded %s: %w", file, err)
		}
		definition := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(text, &definition.Object); err != nil {
			return nil, fmt.Errorf("parse the embedded %s: %w", file, err)
		}
		definitions = append(definitions, definition)
	}
	return definitions, nil
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// crds is where the definitions of this project's custom resources are.
const crds = "api/v1alpha1/crds/*.yaml"

// customPrefix begins the names of definitions of this project's custom resources, as
// io.k8s. does those of Kubernetes. <Kind> and <Kind>Spec follow.
const customPrefix = "com.tailscale.v1alpha1."

// addCustom adds the definitions of this project's custom resources, made strict.
func addCustom(definitions object) error {
	paths, err := filepath.Glob(crds)
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return fmt.Errorf("no files %s", crds)
	}
	for _, path := range paths {
		text, err := os.ReadFile(filepath.Clean(path))
		if err != nil {
			return err
		}
		var crd struct {
			Spec struct {
				Names    struct{ Kind string }
				Versions []struct {
					Schema struct{ OpenAPIV3Schema object }
				}
			}
		}
		if err := yaml.Unmarshal(text, &crd); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		schema, ok := strict(crd.Spec.Versions[0].Schema.OpenAPIV3Schema).(object)
		if !ok {
			return fmt.Errorf("%s has no schema", path)
		}
		fields, ok := schema["properties"].(object)
		if !ok {
			return fmt.Errorf("%s has a schema without properties", path)
		}
		fields["metadata"] = object{"$ref": "#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
		definitions[customPrefix+crd.Spec.Names.Kind+"Spec"] = fields["spec"]
		definitions[customPrefix+crd.Spec.Names.Kind] = schema
	}
	return nil
}

// customFile returns the name of the file with the schema of a custom resource, as kubeconform
// looks for it, or "".
func customFile(definition string) string {
	kind, ok := strings.CutPrefix(definition, customPrefix)
	if !ok || strings.HasSuffix(kind, "Spec") {
		return ""
	}
	return strings.ToLower(kind) + "-tailscale-v1alpha1.json"
}

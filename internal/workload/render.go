// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Release is what templates see as .Release.
type Release struct {
	// Name is that of the operator's release.
	Name string
	// Namespace is the namespace of all objects.
	Namespace string
}

// Render renders the chart in the folder dir with values over the chart's own, and
// returns the objects, ordered by file and place in it. The folder is that of a chart,
// or the mounted ConfigMap of one, whose keys have "__" in place of "/". It is read
// each time: a mounted ConfigMap changes.
func Render(dir string, release Release, values map[string]any) ([]*unstructured.Unstructured, error) {
	c, err := load(dir)
	if err != nil {
		return nil, fmt.Errorf("the workloads' templates in %s: %w", dir, err)
	}
	input, err := chartutil.ToRenderValues(c, values, chartutil.ReleaseOptions{Name: release.Name, Namespace: release.Namespace, Revision: 1, IsInstall: true}, nil)
	if err != nil {
		return nil, fmt.Errorf("the values for the workloads' templates: %w", err)
	}
	files, err := engine.Render(c, input)
	if err != nil {
		return nil, fmt.Errorf("rendering the workloads' templates: %w", err)
	}
	var objects []*unstructured.Unstructured
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if base := path.Base(name); strings.HasPrefix(base, "_") || base == "NOTES.txt" {
			continue
		}
		of, err := parse(files[name], release.Namespace)
		if err != nil {
			return nil, fmt.Errorf("the workloads' template %s: %w", name, err)
		}
		objects = append(objects, of...)
	}
	return objects, nil
}

// load reads a chart.
func load(dir string) (*chart.Chart, error) {
	var files []*loader.BufferedFile
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name != dir && strings.HasPrefix(entry.Name(), ".."): // Kubernetes' own in a volume
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		case entry.IsDir():
			return nil
		}
		content, err := os.ReadFile(name) //nolint:gosec // the folder is the operator's configuration
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		files = append(files, &loader.BufferedFile{Name: strings.ReplaceAll(filepath.ToSlash(relative), "__", "/"), Data: content})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return loader.LoadFiles(files)
}

// parse returns the objects of a rendered file.
func parse(text, namespace string) ([]*unstructured.Unstructured, error) {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewBufferString(text), 4<<10)
	var objects []*unstructured.Unstructured
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(&object.Object); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, err
		}
		if len(object.Object) == 0 {
			continue
		}
		if object.GetKind() == "" || object.GetAPIVersion() == "" || object.GetName() == "" {
			return nil, errors.New("an object lacks apiVersion, kind or metadata.name")
		}
		if !slices.Contains(Kinds, object.GroupVersionKind()) {
			return nil, fmt.Errorf("%s %s is of a kind that the operator does not make", object.GetAPIVersion(), object.GetKind())
		}
		if other := object.GetNamespace(); other != "" && other != namespace {
			return nil, fmt.Errorf("%s %s is in namespace %s, not the operator's, %s", object.GetKind(), object.GetName(), other, namespace)
		}
		object.SetNamespace(namespace)
		objects = append(objects, object)
	}
}

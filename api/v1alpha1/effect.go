// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"fmt"
	"slices"
)

// Environment variables that the operator sets itself, and that a ProxyClass and a Recorder
// cannot.
var (
	ownEnv         = []EnvName{"POD_INDEX", "POD_NAME", "POD_NAMESPACE", "POD_UID", "TS_PORT"}
	recorderOwnEnv = append([]EnvName{"RECORDINGS_DIR"}, ownEnv...)
)

// WithoutEffect returns the paths of the fields of a ProxyClass' spec that are set, and mean
// nothing to the pods of this operator's ProxyGroups. It is empty when each field has effect.
func WithoutEffect(spec *ProxyClassSpec) []string {
	const pod = "spec.statefulSet.pod."
	var paths []string
	if spec.StatefulSet == nil || spec.StatefulSet.Pod == nil {
		return nil
	}
	if spec.StatefulSet.Pod.TailscaleInitContainer != nil {
		paths = append(paths, pod+"tailscaleInitContainer")
	}
	container := spec.StatefulSet.Pod.TailscaleContainer
	if container == nil {
		return paths
	}
	paths = append(paths, ownAmong(container.Env, ownEnv, pod+"tailscaleContainer")...)
	if container.Debug != nil && container.Debug.Enable {
		paths = append(paths, pod+"tailscaleContainer.debug.enable")
	}
	return paths
}

// RecorderWithoutEffect is [WithoutEffect] for the spec of a Recorder.
func RecorderWithoutEffect(spec *RecorderSpec) []string {
	var paths []string
	if spec.EnableUI {
		paths = append(paths, "spec.enableUI")
	}
	if set := spec.StatefulSet; set != nil && set.Pod != nil && set.Pod.Container != nil {
		paths = append(paths, ownAmong(set.Pod.Container.Env, recorderOwnEnv, "spec.statefulSet.pod.container")...)
	}
	return paths
}

// ownAmong returns the paths of those variables of the container at path that are the
// operator's own.
func ownAmong(variables []Env, own []EnvName, path string) []string {
	var paths []string
	for _, env := range variables {
		if slices.Contains(own, env.Name) {
			paths = append(paths, fmt.Sprintf("%s.env[%s]", path, env.Name))
		}
	}
	return paths
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"fmt"
	"slices"
)

// ownEnv are the environment variables that the operator sets itself, and that a ProxyClass
// cannot.
var ownEnv = []EnvName{"POD_INDEX", "POD_NAME", "POD_NAMESPACE", "POD_UID", "TS_PORT"}

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
	for _, env := range container.Env {
		if slices.Contains(ownEnv, env.Name) {
			paths = append(paths, fmt.Sprintf("%stailscaleContainer.env[%s]", pod, env.Name))
		}
	}
	if container.Debug != nil && container.Debug.Enable {
		paths = append(paths, pod+"tailscaleContainer.debug.enable")
	}
	return paths
}

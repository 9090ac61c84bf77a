// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"cmp"
	"fmt"
	"maps"
	"runtime"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// containerIDPrefix is where a container runtime puts its name.
const containerIDPrefix = "tailhelm-test://"

// status is the status of a Pod whose containers are the given ones.
func status(obj *corev1.Pod, containers map[string]*container) corev1.PodStatus {
	s := *obj.Status.DeepCopy()
	s.HostIP, s.HostIPs = "127.0.0.1", []corev1.HostIP{{IP: "127.0.0.1"}}
	s.PodIP, s.PodIPs = "127.0.0.1", []corev1.PodIP{{IP: "127.0.0.1"}}
	if s.StartTime == nil {
		now := metav1.Now()
		s.StartTime = &now
	}
	s.ContainerStatuses, s.EphemeralContainerStatuses = nil, nil
	running, failed := 0, 0
	for _, spec := range obj.Spec.Containers {
		c := containerStatus(spec.Name, spec.Image, containers[spec.Name])
		s.ContainerStatuses = append(s.ContainerStatuses, c)
		switch {
		case c.State.Terminated == nil:
			running++
		case c.State.Terminated.ExitCode != 0:
			failed++
		}
	}
	for _, spec := range obj.Spec.EphemeralContainers {
		c := containerStatus(spec.Name, spec.Image, containers[spec.Name])
		c.Ready, c.Started = false, nil // Has no meaning for these.
		s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, c)
	}
	switch {
	case running > 0:
		s.Phase = corev1.PodRunning
	case failed > 0:
		s.Phase = corev1.PodFailed
	default:
		s.Phase = corev1.PodSucceeded
	}
	ready := running == len(obj.Spec.Containers)
	setCondition(&s, corev1.PodScheduled, true)
	setCondition(&s, corev1.PodInitialized, true)
	setCondition(&s, corev1.ContainersReady, ready)
	setCondition(&s, corev1.PodReady, ready)
	return s
}

func containerStatus(name, image string, c *container) corev1.ContainerStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	running := c.state.Running != nil
	return corev1.ContainerStatus{
		Name: name, Image: image, ImageID: image,
		ContainerID: containerIDPrefix + c.id,
		State:       *c.state.DeepCopy(),
		Ready:       running,
		Started:     &running,
	}
}

// setCondition keeps the time of the last change of a condition that stays.
func setCondition(s *corev1.PodStatus, kind corev1.PodConditionType, value bool) {
	condition := corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now()}
	if value {
		condition.Status = corev1.ConditionTrue
	}
	i := slices.IndexFunc(s.Conditions, func(c corev1.PodCondition) bool { return c.Type == kind })
	switch {
	case i < 0:
		s.Conditions = append(s.Conditions, condition)
	case s.Conditions[i].Status != condition.Status:
		s.Conditions[i] = condition
	}
}

// nodeObject is the Node that the kubelet registers.
func nodeObject(o Options, port int32) *corev1.Node {
	labels := map[string]string{
		corev1.LabelHostname:   o.Name,
		corev1.LabelOSStable:   runtime.GOOS,
		corev1.LabelArchStable: runtime.GOARCH,
	}
	maps.Copy(labels, o.Labels)
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: o.Name, Labels: labels},
		Status: corev1.NodeStatus{
			Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: "127.0.0.1"},
				{Type: corev1.NodeHostName, Address: o.Name},
			},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: port}},
			Capacity:        capacity(),
			Allocatable:     capacity(),
			Conditions: []corev1.NodeCondition{{
				Type: corev1.NodeReady, Status: corev1.ConditionTrue,
				Reason: "KubeletReady", Message: "stand-in for tests",
				LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
			}},
			NodeInfo: corev1.NodeSystemInfo{
				OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
				KubeletVersion: cmp.Or(o.Version, "v0.0.0"), OSImage: "none",
				ContainerRuntimeVersion: fmt.Sprintf("%s0", containerIDPrefix),
			},
		},
	}
}

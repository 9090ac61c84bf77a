// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
)

// class makes a ProxyClass, which goes with the test.
func (w *world) class(name string, spec v1alpha1.ProxyClassSpec) *v1alpha1.ProxyClass {
	w.t.Helper()
	c := &v1alpha1.ProxyClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	w.create(c)
	w.t.Cleanup(func() {
		if err := w.client.Delete(context.Background(), c); client.IgnoreNotFound(err) != nil {
			w.t.Error(err)
		}
	})
	return c
}

func image(name string) v1alpha1.ProxyClassSpec {
	return v1alpha1.ProxyClassSpec{StatefulSet: &v1alpha1.StatefulSet{Pod: &v1alpha1.Pod{TailscaleContainer: &v1alpha1.Container{Image: name}}}}
}

// waitClass waits for a class' condition.
func (w *world) waitClass(c *v1alpha1.ProxyClass, status metav1.ConditionStatus, text string) {
	w.t.Helper()
	w.eventually("the condition of ProxyClass "+c.Name, func(ctx context.Context) error {
		if err := w.client.Get(ctx, client.ObjectKeyFromObject(c), c); err != nil {
			return err
		}
		got := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ProxyClassReady)
		if got == nil || got.Status != status || !strings.Contains(got.Message, text) || got.ObservedGeneration != c.Generation {
			return fmt.Errorf("it is %+v", got)
		}
		return nil
	})
}

// A group waits for its class, follows its changes, and goes on as it is when the class
// goes away.
func TestClassOfAGroup(t *testing.T) {
	w := newWorld(t)
	name := fmt.Sprintf("class-%d", serial.Add(1))
	g := w.group(replicas(1), func(g *v1alpha1.ProxyGroup) { g.Spec.ProxyClass = name })
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, fmt.Sprintf("the ProxyClass %q of spec.proxyClass does not exist", name))
	c := w.class(name, image("ghcr.io/tailscale/k8s-proxy:v1"))
	w.waitClass(c, metav1.ConditionFalse, "official operator")
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "official operator")
	set := func(spec v1alpha1.ProxyClassSpec) {
		t.Helper()
		w.read(c)
		base := c.DeepCopy()
		c.Spec = spec
		if err := w.client.Patch(t.Context(), c, client.MergeFrom(base)); err != nil {
			t.Fatal(err)
		}
	}
	set(image("example.com/mirror/tailhelm:v1"))
	w.waitReady(g)
	used := func() string { return w.statefulSet(g).Spec.Template.Spec.Containers[0].Image }
	if used() != "example.com/mirror/tailhelm:v1" {
		t.Errorf("image %s", used())
	}
	set(image("example.com/mirror/tailhelm:v2"))
	w.eventually("the new image", func(context.Context) error {
		if used() != "example.com/mirror/tailhelm:v2" {
			return fmt.Errorf("image %s", used())
		}
		return nil
	})
	w.eventually("pods with it", func(ctx context.Context) error {
		pod := &corev1.Pod{}
		if !w.exists(ctx, pod, g.Name+"-0") || pod.Spec.Containers[0].Image != used() {
			return fmt.Errorf("image %v", pod.Spec.Containers)
		}
		return nil
	})
	w.waitReady(g)
	if err := w.client.Delete(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	w.edit(g, func(g *v1alpha1.ProxyGroup) { annotate(g, "example.com/look", "again") })
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "does not exist")
	// The new pod may still be on its way to the tailnet: being ready was about the old one.
	w.eventually("a group that goes on as it is", func(context.Context) error {
		if w.read(g); g.Status.URL == "" || used() != "example.com/mirror/tailhelm:v2" {
			return fmt.Errorf("url %q, image %s", g.Status.URL, used())
		}
		return nil
	})
}

// Groups without a class have the operator's default.
func TestDefaultClass(t *testing.T) {
	name := fmt.Sprintf("class-%d", serial.Add(1))
	w := newWorld(t, func(c *Config) { c.DefaultClass = name })
	g := w.group(replicas(1))
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "proxyConfig.defaultProxyClass")
	w.class(name, image("example.com/tailhelm:default"))
	w.waitReady(g)
	if got := w.statefulSet(g).Spec.Template.Spec.Containers[0].Image; got != "example.com/tailhelm:default" {
		t.Errorf("image %s", got)
	}
}

// A group without tags keeps those that were the default when it was first seen: its
// devices have them, and only devices with the group's tags are deleted.
func TestDefaultTags(t *testing.T) {
	w := newWorld(t)
	g := w.group(replicas(1))
	w.waitReady(g)
	w.stop()
	w.config.Tags = []string{"tag:k8s-tools"}
	w.start()
	w.edit(g, func(g *v1alpha1.ProxyGroup) { g.Spec.Replicas = ptr.To[int32](2) })
	w.waitReady(g)
	if tags := w.service(t.Context(), "svc:"+g.Name).Tags; !slices.Equal(tags, []string{tagK8s}) {
		t.Errorf("the Service has the tags %q, want %s", tags, tagK8s)
	}
	if err := w.client.Delete(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	w.waitGone(g)
	w.checkNothingLeft(g)
}

// A class says which of its fields do nothing.
func TestClassWithoutEffect(t *testing.T) {
	w := newWorld(t)
	spec := image("")
	spec.StatefulSet.Pod.TailscaleInitContainer = &v1alpha1.Container{}
	c := w.class(fmt.Sprintf("class-%d", serial.Add(1)), spec)
	w.waitClass(c, metav1.ConditionTrue, "spec.statefulSet.pod.tailscaleInitContainer")
}

func TestClassProblems(t *testing.T) {
	for name, tc := range map[string]struct {
		spec v1alpha1.ProxyClassSpec
		want string
	}{
		"empty":               {v1alpha1.ProxyClassSpec{}, ""},
		"own image":           {image("registry:5000/tailhelm@sha256:abc"), ""},
		"no image":            {image("two words"), "is no name of an image"},
		"official image":      {image("tailscale/tailscale"), "image of the official operator"},
		"its digest":          {image("docker.io/tailscale/k8s-proxy@sha256:abc"), "image of the official operator"},
		"label's name":        {v1alpha1.ProxyClassSpec{StatefulSet: &v1alpha1.StatefulSet{Labels: v1alpha1.Labels{"a b": "c"}}}, "spec.statefulSet.labels"},
		"annotation's name":   {v1alpha1.ProxyClassSpec{StatefulSet: &v1alpha1.StatefulSet{Pod: &v1alpha1.Pod{Annotations: map[string]string{"a b": "c"}}}}, "spec.statefulSet.pod.annotations"},
		"node selector":       {v1alpha1.ProxyClassSpec{StatefulSet: &v1alpha1.StatefulSet{Pod: &v1alpha1.Pod{NodeSelector: map[string]string{"a": "b c"}}}}, "spec.statefulSet.pod.nodeSelector"},
		"endpoints' selector": {v1alpha1.ProxyClassSpec{StaticEndpoints: &v1alpha1.StaticEndpointsConfig{NodePort: &v1alpha1.NodePortConfig{Selector: map[string]string{"a": "b c"}}}}, "spec.staticEndpoints.nodePort.selector"},
		"service monitor":     {v1alpha1.ProxyClassSpec{Metrics: &v1alpha1.Metrics{ServiceMonitor: &v1alpha1.ServiceMonitor{Labels: v1alpha1.Labels{"a b": "c"}}}}, "spec.metrics.serviceMonitor.labels"},
		"label's value":       {v1alpha1.ProxyClassSpec{StatefulSet: &v1alpha1.StatefulSet{Labels: v1alpha1.Labels{"a": "b c"}}}, "spec.statefulSet.labels"},
	} {
		t.Run(name, func(t *testing.T) {
			got := classProblems(&tc.spec)
			if len(got) > 1 || (len(got) == 0) != (tc.want == "") || len(got) == 1 && !strings.Contains(got[0], tc.want) {
				t.Errorf("problems %q, want %q", got, tc.want)
			}
		})
	}
}

// What is not rendered any more is deleted: the budget of a group that shrinks to one.
func TestPrune(t *testing.T) {
	w := newWorld(t)
	g := w.group()
	w.waitReady(g)
	if !w.exists(t.Context(), &policyv1.PodDisruptionBudget{}, g.Name) {
		t.Fatal("no PodDisruptionBudget")
	}
	w.edit(g, replicas(1))
	w.eventually("the end of the PodDisruptionBudget", func(ctx context.Context) error {
		if w.exists(ctx, &policyv1.PodDisruptionBudget{}, g.Name) {
			return fmt.Errorf("it is there")
		}
		return nil
	})
}

// A ServiceMonitor that the cluster does not know is told of, and hinders nothing.
func TestUnknownServiceMonitor(t *testing.T) {
	w := newWorld(t)
	name := fmt.Sprintf("class-%d", serial.Add(1))
	w.class(name, v1alpha1.ProxyClassSpec{Metrics: &v1alpha1.Metrics{Enable: true, ServiceMonitor: &v1alpha1.ServiceMonitor{Enable: true}}})
	g := w.group(replicas(1), func(g *v1alpha1.ProxyGroup) { g.Spec.ProxyClass = name })
	w.waitReady(g)
	w.event(g, "ServiceMonitorUnknown", "install Prometheus' operator")
}

// Static endpoints: a node port and two nodes for each replica, which stay; and a
// condition when that cannot be.
func TestStaticEndpoints(t *testing.T) {
	w := newWorld(t)
	name := fmt.Sprintf("class-%d", serial.Add(1))
	selector := map[string]string{"edge": name}
	w.class(name, v1alpha1.ProxyClassSpec{StaticEndpoints: &v1alpha1.StaticEndpointsConfig{NodePort: &v1alpha1.NodePortConfig{
		Ports: []v1alpha1.PortRange{{Port: 30100, EndPort: 30101}, {Port: 30110}}, Selector: selector,
	}}})
	w.create(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "taken", Namespace: w.namespace}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 1, NodePort: 30101, Protocol: corev1.ProtocolUDP}},
	}})
	g := w.group(func(g *v1alpha1.ProxyGroup) { g.Spec.ProxyClass = name })
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "no Node that matches")
	w.node(name+"-b", selector, "192.0.2.2")
	w.node(name+"-c", selector, "192.0.2.3")
	w.waitReady(g)
	endpoints := func(ordinal int) string {
		s := &corev1.Secret{}
		w.exists(t.Context(), s, configSecretName(g.Name, ordinal))
		return string(s.Data[keyStaticEndpoints])
	}
	wait := func(want ...string) {
		t.Helper()
		w.eventually("endpoints", func(context.Context) error {
			for i, e := range want {
				if endpoints(i) != e {
					return fmt.Errorf("replica %d: %q, want %q", i, endpoints(i), e)
				}
			}
			return nil
		})
	}
	wait("192.0.2.2:30100,192.0.2.3:30100", "192.0.2.2:30110,192.0.2.3:30110")
	if env := w.statefulSet(g).Spec.Template.Spec.Containers[0].Env; !slices.Contains(env, corev1.EnvVar{Name: "TS_PORT", Value: "41641"}) {
		t.Errorf("env %v", env)
	}
	// A node that comes changes nothing, one that goes does.
	w.node(name+"-a", selector, "192.0.2.1")
	w.node(name+"-z", selector, "2001:db8::1")
	wait("192.0.2.2:30100,192.0.2.3:30100", "192.0.2.2:30110,192.0.2.3:30110")
	if err := w.client.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name + "-b"}}); err != nil {
		t.Fatal(err)
	}
	wait("192.0.2.3:30100,192.0.2.1:30100")
	w.eventually("the status", func(context.Context) error {
		w.read(g)
		if len(g.Status.Devices) != 2 || !slices.Equal(g.Status.Devices[0].StaticEndpoints, []string{"192.0.2.3:30100", "192.0.2.1:30100"}) {
			return fmt.Errorf("devices %+v", g.Status.Devices)
		}
		return nil
	})
	w.edit(g, replicas(3))
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "replica 2 has no static endpoint: no free port")
}

// A ProxyClass may name ports that the cluster has not.
func TestStaticEndpointsOfAnyPort(t *testing.T) {
	w := newWorld(t)
	name := fmt.Sprintf("class-%d", serial.Add(1))
	w.class(name, v1alpha1.ProxyClassSpec{StaticEndpoints: &v1alpha1.StaticEndpointsConfig{NodePort: &v1alpha1.NodePortConfig{
		Ports: []v1alpha1.PortRange{{Port: 1, EndPort: 65535}}, Selector: map[string]string{"edge": name},
	}}})
	w.node(name, map[string]string{"edge": name}, "192.0.2.2")
	g := w.group(replicas(1), func(g *v1alpha1.ProxyGroup) { g.Spec.ProxyClass = name })
	w.waitReady(g)
	w.eventually("an endpoint", func(context.Context) error {
		w.read(g)
		if len(g.Status.Devices) != 1 || len(g.Status.Devices[0].StaticEndpoints) != 1 || !strings.HasPrefix(g.Status.Devices[0].StaticEndpoints[0], "192.0.2.2:3") {
			return fmt.Errorf("devices %+v", g.Status.Devices)
		}
		return nil
	})
}

// node makes a Node, which goes with the test.
func (w *world) node(name string, labels map[string]string, address string) {
	w.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	w.create(n)
	w.t.Cleanup(func() {
		if err := w.client.Delete(context.Background(), n.DeepCopy()); client.IgnoreNotFound(err) != nil {
			w.t.Error(err)
		}
	})
	base := n.DeepCopy()
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeExternalIP, Address: address}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	if err := w.client.Status().Patch(w.t.Context(), n, client.MergeFrom(base)); err != nil {
		w.t.Fatal(err)
	}
}

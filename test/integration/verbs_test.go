// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// configMaps is a client for the ConfigMaps of a namespace that its caller owns.
func configMaps(t *testing.T, p *proxy) (*caller, string, typedcorev1.ConfigMapInterface) {
	t.Helper()
	c := newUser(t, p)
	ns := newNamespace(t, user(c.user))
	return c, ns, c.client().CoreV1().ConfigMaps(ns)
}

func configMap(name string, data ...string) *corev1.ConfigMap {
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{}}
	for i := 0; i < len(data); i += 2 {
		m.Data[data[i]] = data[i+1]
	}
	return m
}

// must returns a function that takes a result without its error.
func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestVerbs uses every verb, and looks at the effects past the proxy.
func TestVerbs(t *testing.T) {
	t.Parallel()
	_, ns, maps := configMaps(t, shared.proxy)
	ctx := within(t, patience)
	direct := shared.cluster.Client().CoreV1().ConfigMaps(ns)
	got := must[*corev1.ConfigMap](t)

	created := got(maps.Create(ctx, configMap("a", "k", "1"), metav1.CreateOptions{}))
	if read := got(maps.Get(ctx, "a", metav1.GetOptions{})); read.UID != created.UID || read.Data["k"] != "1" {
		t.Errorf("get: %+v", read)
	}
	stale := created.DeepCopy()
	created.Data["k"] = "2"
	got(maps.Update(ctx, created, metav1.UpdateOptions{}))
	if _, err := maps.Update(ctx, stale, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("an update of an old version: %v, want Conflict", err)
	}
	for _, p := range []struct {
		kind types.PatchType
		body string
		want string
	}{
		{types.JSONPatchType, `[{"op":"replace","path":"/data/k","value":"json"}]`, "json"},
		{types.MergePatchType, `{"data":{"k":"merge"}}`, "merge"},
		{types.StrategicMergePatchType, `{"data":{"k":"strategic"}}`, "strategic"},
	} {
		got(maps.Patch(ctx, "a", p.kind, []byte(p.body), metav1.PatchOptions{}))
		if value := got(direct.Get(ctx, "a", metav1.GetOptions{})).Data["k"]; value != p.want {
			t.Errorf("after %s: %q, want %q", p.kind, value, p.want)
		}
	}
	applied := got(maps.Apply(ctx, applycorev1.ConfigMap("b", ns).WithData(map[string]string{"k": "applied"}), metav1.ApplyOptions{FieldManager: "one"}))
	if len(applied.ManagedFields) != 1 || applied.ManagedFields[0].Manager != "one" {
		t.Errorf("apply: managed by %+v", applied.ManagedFields)
	}
	_, err := maps.Apply(ctx, applycorev1.ConfigMap("b", ns).WithData(map[string]string{"k": "other"}), metav1.ApplyOptions{FieldManager: "two"})
	if !apierrors.IsConflict(err) {
		t.Errorf("apply of another's field: %v, want Conflict", err)
	}
	if err := maps.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := maps.Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("get of what was deleted: %v, want NotFound", err)
	}
	got(maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c", Labels: map[string]string{"sweep": "yes"}}}, metav1.CreateOptions{}))
	if err := maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "sweep=yes"}); err != nil {
		t.Errorf("deletecollection: %v", err)
	}
	if _, err := direct.Get(ctx, "c", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after deletecollection: %v, want NotFound", err)
	}
	got(direct.Get(ctx, "b", metav1.GetOptions{}))
}

func TestPagination(t *testing.T) {
	t.Parallel()
	_, _, maps := configMaps(t, shared.proxy)
	ctx := within(t, patience)
	const count, limit = 25, 10
	for i := range count {
		must[*corev1.ConfigMap](t)(maps.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m%02d", i), Labels: map[string]string{"page": "yes"}},
		}, metav1.CreateOptions{}))
	}
	seen, pages := map[string]bool{}, 0
	for options := (metav1.ListOptions{Limit: limit, LabelSelector: "page=yes"}); pages == 0 || options.Continue != ""; pages++ {
		list := must[*corev1.ConfigMapList](t)(maps.List(ctx, options))
		for _, m := range list.Items {
			seen[m.Name] = true
		}
		options.Continue = list.Continue
	}
	if len(seen) != count || pages != 3 {
		t.Errorf("%d objects on %d pages, want %d on 3", len(seen), pages, count)
	}
}

// TestWatch sees each event as it happens, and starts again where it was.
func TestWatch(t *testing.T) {
	t.Parallel()
	_, ns, maps := configMaps(t, shared.proxy)
	ctx := within(t, patience)
	direct := shared.cluster.Client().CoreV1().ConfigMaps(ns)
	list := must[*corev1.ConfigMapList](t)(maps.List(ctx, metav1.ListOptions{}))
	open := func(version string) watch.Interface {
		t.Helper()
		return must[watch.Interface](t)(maps.Watch(ctx, metav1.ListOptions{ResourceVersion: version, FieldSelector: "metadata.name=watched"}))
	}
	w := open(list.ResourceVersion)
	expect := func(kind watch.EventType, value string) (version string) {
		t.Helper()
		select {
		case e := <-w.ResultChan():
			m, ok := e.Object.(*corev1.ConfigMap)
			if !ok || e.Type != kind || m.Data["k"] != value {
				t.Fatalf("event %+v, want %s of %q", e, kind, value)
			}
			return m.ResourceVersion
		case <-ctx.Done():
			t.Fatalf("no event, want %s of %q", kind, value)
		}
		return ""
	}
	// Each event must arrive before the next one is made: nothing may wait for more.
	m := must[*corev1.ConfigMap](t)(direct.Create(ctx, configMap("watched", "k", "1"), metav1.CreateOptions{}))
	version := expect(watch.Added, "1")
	for i := 2; i < 10; i++ {
		m.Data["k"] = fmt.Sprint(i)
		m = must[*corev1.ConfigMap](t)(direct.Update(ctx, m, metav1.UpdateOptions{}))
		version = expect(watch.Modified, fmt.Sprint(i))
	}
	if err := direct.Delete(ctx, "watched", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	expect(watch.Deleted, "9")
	w.Stop()
	w = open(version)
	expect(watch.Deleted, "9")
	w.Stop()
}

// TestSubresources uses scale and status.
func TestSubresources(t *testing.T) {
	t.Parallel()
	c := newUser(t, shared.proxy)
	ns := newNamespace(t, user(c.user))
	ctx := within(t, patience)
	deployments := c.client().AppsV1().Deployments(ns)
	labels := map[string]string{"app": "x"}
	must[*appsv1.Deployment](t)(deployments.Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "d"},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "none"}}},
			},
		},
	}, metav1.CreateOptions{}))
	scale, err := deployments.GetScale(ctx, "d", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	scale.Spec.Replicas = 7
	if scale, err = deployments.UpdateScale(ctx, "d", scale, metav1.UpdateOptions{}); err != nil || scale.Spec.Replicas != 7 {
		t.Errorf("scale: %+v %v", scale, err)
	}
	d := must[*appsv1.Deployment](t)(deployments.Get(ctx, "d", metav1.GetOptions{}))
	one := int32(1)
	d.Status.ObservedGeneration, d.Spec.Replicas = d.Generation, &one
	d = must[*appsv1.Deployment](t)(deployments.UpdateStatus(ctx, d, metav1.UpdateOptions{}))
	if d.Status.ObservedGeneration != d.Generation || *d.Spec.Replicas != 7 {
		t.Errorf("after an update of the status: %+v with %d replicas", d.Status, *d.Spec.Replicas)
	}
}

// TestNonResourcePaths asks for what is not an object.
func TestNonResourcePaths(t *testing.T) {
	t.Parallel()
	c := newUser(t, shared.proxy, admins)
	for _, path := range []string{
		"/version", "/healthz", "/livez/ping", "/readyz?verbose", "/metrics", "/openapi/v2", "/openapi/v3",
		"/api", "/apis", "/apis/apps/v1", "/.well-known/openid-configuration",
	} {
		if res, body := c.get(path); res.StatusCode != http.StatusOK || len(body) == 0 {
			t.Errorf("%s: %s %d bytes", path, res.Status, len(body))
		}
	}
	if res, _ := c.get("/no/such/path"); res.StatusCode != http.StatusNotFound {
		t.Errorf("/no/such/path: %s", res.Status)
	}
	groups, resources, err := c.client().Discovery().ServerGroupsAndResources()
	if err != nil || len(groups) < 10 || len(resources) < 10 {
		t.Errorf("discovery: %d groups, %d resources, %v", len(groups), len(resources), err)
	}
	res, body := c.get("/apis", "Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
	var list struct{ Kind string }
	if err := json.Unmarshal(body, &list); err != nil || list.Kind != "APIGroupDiscoveryList" {
		t.Errorf("aggregated discovery: %s %q %v", res.Status, list.Kind, err)
	}
}

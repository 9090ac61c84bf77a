// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// replicas returns an edit of the number of replicas.
func replicas(n int32) func(*v1alpha1.ProxyGroup) {
	return func(g *v1alpha1.ProxyGroup) { g.Spec.Replicas = &n }
}

func mode(m v1alpha1.APIServerProxyMode) func(*v1alpha1.ProxyGroup) {
	return func(g *v1alpha1.ProxyGroup) {
		if g.Spec.KubeAPIServer == nil {
			g.Spec.KubeAPIServer = &v1alpha1.KubeAPIServerConfig{}
		}
		g.Spec.KubeAPIServer.Mode = &m
	}
}

func hostname(name string) func(*v1alpha1.ProxyGroup) {
	return func(g *v1alpha1.ProxyGroup) {
		if g.Spec.KubeAPIServer == nil {
			g.Spec.KubeAPIServer = &v1alpha1.KubeAPIServerConfig{}
		}
		g.Spec.KubeAPIServer.Hostname = name
	}
}

// A group becomes ready by itself, everything of it is marked as its own, and when it
// is deleted nothing is left.
func TestFromApplyToNothingLeft(t *testing.T) {
	w := newWorld(t)
	g := w.group()
	w.waitReady(g)
	ctx := t.Context()
	if want := "https://" + g.Name + "." + w.tailnet.Domain(); g.Status.URL != want {
		t.Errorf("url %q, want %q", g.Status.URL, want)
	}
	for _, kind := range []string{
		v1alpha1.ProxyGroupAvailable, v1alpha1.KubeAPIServerProxyValid, v1alpha1.KubeAPIServerProxyConfigured,
		v1alpha1.ServiceApproved, v1alpha1.CertificateReady, v1alpha1.TailscaleAPIAvailable,
	} {
		if c := condition(g, kind); c.Status != metav1.ConditionTrue {
			t.Errorf("%s is %s: %s", kind, c.Status, c.Message)
		}
	}
	if len(g.Status.Devices) != 2 || g.Status.Devices[0].Hostname != g.Name+"-0" || len(g.Status.Devices[0].TailnetIPs) != 2 {
		t.Errorf("devices %+v", g.Status.Devices)
	}
	service := w.service(ctx, "svc:"+g.Name)
	if service == nil || !slices.Equal(service.Ports, []string{"tcp:443", "tcp:80"}) || !slices.Equal(service.Tags, []string{tagK8s}) {
		t.Errorf("service %+v", service)
	}
	w.eventually("auth keys taken away", func(ctx context.Context) error {
		for i := range 2 {
			s := &corev1.Secret{}
			if !w.exists(ctx, s, configSecretName(g.Name, i)) || s.Data[keyAuthKey] != nil || s.Annotations[annotationKeyID] != "" {
				return fmt.Errorf("%s: %v %v", s.Name, s.Data, s.Annotations)
			}
		}
		return nil
	})
	if n := len(w.left(ctx, g)); n < 12 {
		t.Errorf("%d objects: %v", n, w.left(ctx, g))
	}
	for _, object := range []client.Object{&corev1.ServiceAccount{}, &corev1.Secret{}} {
		name := g.Name
		if _, ok := object.(*corev1.Secret); ok {
			name += "-tls"
		}
		if !w.exists(ctx, object, name) || !metav1.IsControlledBy(object, g) {
			t.Errorf("%T %s is not the group's: %v", object, name, object.GetOwnerReferences())
		}
	}
	w.event(g, "TailscaleServiceCreated", "svc:"+g.Name)
	w.event(g, "ProxyGroupReady", "2/2")
	if err := w.client.Delete(ctx, g); err != nil {
		t.Fatal(err)
	}
	w.waitGone(g)
	w.checkNothingLeft(g)
}

// Scaling deletes exactly the devices and Secrets of the replicas that went.
func TestScale(t *testing.T) {
	w := newWorld(t)
	g := w.group()
	w.waitReady(g)
	for _, n := range []int32{3, 1, 0, 2, 0} {
		w.edit(g, replicas(n))
		if n == 0 {
			w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, reasonScaledToZero)
		} else {
			w.waitReady(g)
		}
		w.eventually(fmt.Sprintf("%d replicas and nothing more", n), func(ctx context.Context) error {
			w.read(g)
			devices := w.devices(ctx)
			left := w.left(ctx, g)
			secrets := slices.DeleteFunc(left, func(s string) bool { return len(s) < 6 || s[:6] != "Secret" })
			if len(devices) != int(n) || len(secrets) != 2*int(n)+1 || len(g.Status.Devices) != int(n) {
				return fmt.Errorf("devices %v, status %v, secrets %v", devices, g.Status.Devices, secrets)
			}
			return nil
		})
		if w.service(t.Context(), "svc:"+g.Name) == nil {
			t.Errorf("the name is not kept with %d replicas", n)
		}
	}
	if g.Status.URL != "" {
		t.Errorf("url %s with no replica", g.Status.URL)
	}
	// Deletion needs nothing that a group without replicas lacks.
	if err := w.client.Delete(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	w.waitGone(g)
	w.checkNothingLeft(g)
}

// A renamed group has the new Service alone.
func TestRename(t *testing.T) {
	w := newWorld(t)
	g := w.group()
	w.waitReady(g)
	other := g.Name + "-renamed"
	w.edit(g, hostname(other))
	w.eventually("the new name", func(ctx context.Context) error {
		w.read(g)
		if g.Status.URL != "https://"+other+"."+w.tailnet.Domain() {
			return fmt.Errorf("url %s", g.Status.URL)
		}
		if got := g.Status.Tailnet.Services; !slices.Equal(got, []string{"svc:" + other}) {
			return fmt.Errorf("notes: %v", got)
		}
		if w.service(ctx, "svc:"+other) == nil || w.service(ctx, "svc:"+g.Name) != nil {
			return fmt.Errorf("services: new %v, old %v", w.service(ctx, "svc:"+other), w.service(ctx, "svc:"+g.Name))
		}
		return nil
	})
	w.waitReady(g)
	var pods corev1.PodList
	if err := w.client.List(t.Context(), &pods, client.InNamespace(w.namespace)); err != nil {
		t.Fatal(err)
	}
	for _, pod := range pods.Items { // ready under the new name means that all serve it
		if !slices.Contains(pod.Spec.Containers[0].Args, "--service=svc:"+other) {
			t.Errorf("%s: args %q", pod.Name, pod.Spec.Containers[0].Args)
		}
	}
	if args := w.statefulSet(g).Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--service=svc:"+other) {
		t.Errorf("args %q", args)
	}
}

// The mode reaches the pods, and auth needs the ServiceAccount of the chart.
func TestSwitchMode(t *testing.T) {
	w := newWorld(t)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: impersonator, Namespace: w.namespace}}
	if err := w.client.Delete(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	g := w.group()
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "apiServerProxyConfig.allowImpersonation")
	w.waitCondition(g, v1alpha1.KubeAPIServerProxyValid, metav1.ConditionFalse, "there is no ServiceAccount")
	if left := w.left(t.Context(), g); len(left) > 0 {
		t.Errorf("made for an invalid group: %v", left)
	}
	w.edit(g, mode(v1alpha1.APIServerProxyModeNoAuth))
	w.waitReady(g)
	args := func() []string { return w.statefulSet(g).Spec.Template.Spec.Containers[0].Args }
	if !slices.Contains(args(), "--mode=noauth") {
		t.Errorf("args %q", args())
	}
	w.edit(g, mode(v1alpha1.APIServerProxyModeAuth))
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "there is no ServiceAccount")
	account.ResourceVersion = ""
	w.create(account)
	w.waitReady(g)
	w.eventually("the mode in the pods", func(context.Context) error {
		if !slices.Contains(args(), "--mode=auth") {
			return fmt.Errorf("args %q", args())
		}
		return nil
	})
}

// An operator that starts anew finds everything as it is and makes nothing twice.
func TestOperatorRestarts(t *testing.T) {
	w := newWorld(t)
	g := w.group()
	w.waitReady(g)
	w.eventually("rest", func(ctx context.Context) error {
		s := &corev1.Secret{}
		for i := range 2 {
			if !w.exists(ctx, s, configSecretName(g.Name, i)) || s.Data[keyAuthKey] != nil || s.Annotations[annotationKeyID] != "" {
				return fmt.Errorf("an auth key is left")
			}
		}
		return nil
	})
	w.stop()
	keys, before := w.tailnet.Calls("/api/v2/tailnet/-/keys"), w.statefulSet(g)
	w.edit(g, func(g *v1alpha1.ProxyGroup) { g.Spec.Replicas = ptr.To[int32](1) })
	w.start()
	w.waitReady(g)
	w.eventually("one device", func(ctx context.Context) error {
		if d := w.devices(ctx); len(d) != 1 {
			return fmt.Errorf("devices %v", d)
		}
		return nil
	})
	if n := w.tailnet.Calls("/api/v2/tailnet/-/keys"); n != keys {
		t.Errorf("%d calls for auth keys after the restart", n-keys)
	}
	if after := w.statefulSet(g); after.UID != before.UID || after.Generation != before.Generation+1 {
		t.Errorf("generation %d after %d", after.Generation, before.Generation)
	}
}

// When replicas' Secrets are lost, their devices are replaced, and the lost ones are
// deleted.
func TestStateLost(t *testing.T) {
	w := newWorld(t)
	g := w.group()
	w.waitReady(g)
	old := slices.Clone(g.Status.Tailnet.Devices)
	for i := range 2 {
		for _, name := range []string{stateSecretName(g.Name, i), configSecretName(g.Name, i)} {
			if err := w.client.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.namespace}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(w.namespace), client.MatchingLabels{labelParent: g.Name}); err != nil {
		t.Fatal(err)
	}
	w.eventually("other devices, and only those", func(ctx context.Context) error {
		w.read(g)
		if g.Status.Tailnet == nil || len(g.Status.Tailnet.Devices) != 2 || len(w.devices(ctx)) != 2 {
			return fmt.Errorf("%+v, devices %v", g.Status.Tailnet, w.devices(ctx))
		}
		for _, id := range old {
			if slices.Contains(g.Status.Tailnet.Devices, id) {
				return fmt.Errorf("%v still has %s", g.Status.Tailnet.Devices, id)
			}
		}
		return nil
	})
	w.waitReady(g)
}

// A replica whose auth key was refused gets another, once, and keeps it until it has
// logged in.
func TestReissue(t *testing.T) {
	w := newWorld(t)
	g := w.group(replicas(1))
	w.waitReady(g)
	device := g.Status.Tailnet.Devices[0]
	calls := w.tailnet.Calls("/api/v2/tailnet/-/keys")
	// The device is removed in the admin console: the replica asks for a key.
	if err := w.admin.Devices().Delete(t.Context(), device); err != nil {
		t.Fatal(err)
	}
	state := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: stateSecretName(g.Name, 0), Namespace: w.namespace}}
	if err := w.kubelet.patch(t.Context(), state, map[string]any{tailnet.FieldReissue: ""}); err != nil {
		t.Fatal(err)
	}
	config := &corev1.Secret{}
	w.eventually("another key, and no marker", func(ctx context.Context) error {
		w.exists(ctx, config, configSecretName(g.Name, 0))
		w.exists(ctx, state, state.Name)
		if _, asks := state.Data[tailnet.FieldReissue]; asks || len(config.Data[keyAuthKey]) == 0 {
			return fmt.Errorf("key %q, asks %v", config.Data[keyAuthKey], asks)
		}
		return nil
	})
	first := string(config.Data[keyAuthKey])
	// It is refused, too: one more.
	if err := w.kubelet.patch(t.Context(), state, map[string]any{tailnet.FieldReissue: first}); err != nil {
		t.Fatal(err)
	}
	w.eventually("a third key", func(ctx context.Context) error {
		w.exists(ctx, config, configSecretName(g.Name, 0))
		w.exists(ctx, state, state.Name)
		if _, asks := state.Data[tailnet.FieldReissue]; asks || string(config.Data[keyAuthKey]) == first || len(config.Data[keyAuthKey]) == 0 {
			return fmt.Errorf("key %q, asks %v", config.Data[keyAuthKey], asks)
		}
		return nil
	})
	w.event(g, "AuthKeyReissued", "replica 0")
	// The replica logs in with it: a new pod does.
	w.kubelet.forget(device)
	if err := w.client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(w.namespace), client.MatchingLabels{labelParent: g.Name}); err != nil {
		t.Fatal(err)
	}
	w.eventually("another device, and no key", func(ctx context.Context) error {
		w.read(g)
		w.exists(ctx, config, configSecretName(g.Name, 0))
		if config.Data[keyAuthKey] != nil || g.Status.Tailnet == nil || len(g.Status.Tailnet.Devices) != 1 || g.Status.Tailnet.Devices[0] == device {
			return fmt.Errorf("key %q, %v", config.Data[keyAuthKey], g.Status.Tailnet)
		}
		return nil
	})
	w.waitReady(g)
	if n := w.tailnet.Calls("/api/v2/tailnet/-/keys") - calls; n > 5 { // two minted, and those revoked
		t.Errorf("%d calls about auth keys", n)
	}
}

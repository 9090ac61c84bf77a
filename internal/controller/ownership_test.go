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
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	tailscale "tailscale.com/client/tailscale/v2"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/test/kubernetes"
)

func TestClaimOf(t *testing.T) {
	self := owner{OperatorID: "cluster", Resource: &resource{Kind: "ProxyGroup", Name: "kube", UID: "u1"}}
	gone := func(r resource) bool { return r.Name == "gone" || r.Name == "kube" && r.UID != "u1" }
	for name, tc := range map[string]struct {
		annotation string
		want       claim
		whose      string
	}{
		"none":                        {"", claimUnmarked, "by hand"},
		"not JSON":                    {"{", claimUnmarked, "cannot be read"},
		"no owners":                   {`{"ownerRefs":[]}`, claimUnmarked, "cannot be read"},
		"ours":                        {self.annotation(), claimOurs, ""},
		"ours under another operator": {`{"ownerRefs":[{"operatorID":"nDevice","resource":{"kind":"ProxyGroup","name":"kube","uid":"u1"}}]}`, claimAdoptable, ""},
		"an earlier group of ours":    {`{"ownerRefs":[{"operatorID":"cluster","resource":{"kind":"ProxyGroup","name":"kube","uid":"u0"}}]}`, claimAdoptable, ""},
		"a group that is gone":        {`{"ownerRefs":[{"operatorID":"cluster","resource":{"kind":"ProxyGroup","name":"gone","uid":"u2"}}]}`, claimAdoptable, ""},
		"another group":               {`{"ownerRefs":[{"operatorID":"cluster","resource":{"kind":"ProxyGroup","name":"other","uid":"u2"}}]}`, claimForeign, "ProxyGroup other"},
		"another cluster":             {`{"ownerRefs":[{"operatorID":"elsewhere","resource":{"kind":"ProxyGroup","name":"kube","uid":"u2"}}]}`, claimForeign, "the cluster with the ID elsewhere"},
		"gone, but elsewhere":         {`{"ownerRefs":[{"operatorID":"elsewhere","resource":{"kind":"ProxyGroup","name":"gone","uid":"u2"}}]}`, claimForeign, "elsewhere"},
		"another kind":                {`{"ownerRefs":[{"operatorID":"cluster","resource":{"kind":"Ingress","name":"kube","uid":"u1"}}]}`, claimForeign, "Ingress kube"},
		"no resource":                 {`{"ownerRefs":[{"operatorID":"cluster"}]}`, claimForeign, "the operator with the ID cluster"},
		"shared":                      {`{"ownerRefs":[{"operatorID":"cluster","resource":{"kind":"ProxyGroup","name":"kube","uid":"u1"}},{"operatorID":"elsewhere","resource":{"kind":"ProxyGroup","name":"kube","uid":"u9"}}]}`, claimForeign, "among others"},
	} {
		t.Run(name, func(t *testing.T) {
			annotations := map[string]string{}
			if tc.annotation != "" {
				annotations[ownerAnnotation] = tc.annotation
			}
			got, whose := claimOf(annotations, self, gone)
			if got != tc.want || !strings.Contains(whose, tc.whose) {
				t.Errorf("%d %q, want %d %q", got, whose, tc.want, tc.whose)
			}
		})
	}
}

// What the official operator has served is left to it, with a word about that.
func TestServedByOfficialOperator(t *testing.T) {
	w := newWorld(t)
	for name, f := range map[string]string{"of-all-kinds": finalizer, "of-this-type": officialFinalizer} {
		g := w.group(func(g *v1alpha1.ProxyGroup) {
			g.Name, g.Annotations, g.Finalizers = name, nil, []string{f}
		})
		w.eventually("an event of "+name, func(ctx context.Context) error {
			var events eventsv1.EventList
			if err := w.client.List(ctx, &events); err != nil {
				return err
			}
			for _, e := range events.Items {
				if e.Regarding.UID == g.UID && e.Reason == "ServedByAnotherOperator" {
					return nil
				}
			}
			return fmt.Errorf("none of %d", len(events.Items))
		})
		if w.read(g); len(g.Annotations) > 0 || !slices.Equal(g.Finalizers, []string{f}) || len(g.Status.Conditions) > 0 {
			t.Errorf("it has the annotations %v, finalizers %v, conditions %v", g.Annotations, g.Finalizers, g.Status.Conditions)
		}
		// Deleted first: without a finalizer it is anybody's.
		if err := w.client.Delete(t.Context(), g); err != nil {
			t.Error(err)
		}
		w.edit(g, func(g *v1alpha1.ProxyGroup) { g.Finalizers = nil })
	}
	// One that is handed over by its annotation is served.
	g := w.group(replicas(1), func(g *v1alpha1.ProxyGroup) { g.Finalizers = []string{finalizer} })
	w.waitReady(g)
}

// put writes a Service as a person does in the admin console.
func (w *world) put(s tailscale.VIPService) {
	w.t.Helper()
	if err := w.admin.VIPServices().CreateOrUpdate(w.t.Context(), s); err != nil {
		w.t.Fatal(err)
	}
}

// What a person changes or deletes in the admin console comes back, and the Service
// keeps its addresses.
func TestServiceIsRepaired(t *testing.T) {
	w := newWorld(t)
	g := w.group(replicas(1))
	w.waitReady(g)
	name := "svc:" + g.Name
	before := w.service(t.Context(), name)
	repaired := func(what string) {
		t.Helper()
		w.eventually(what, func(ctx context.Context) error {
			s := w.service(ctx, name)
			if s == nil || !slices.Equal(s.Ports, before.Ports) || !slices.Equal(s.Tags, before.Tags) || s.Annotations[ownerAnnotation] != before.Annotations[ownerAnnotation] {
				return fmt.Errorf("it is %+v", s)
			}
			return nil
		})
	}
	edited := *before
	edited.Ports, edited.Tags, edited.Annotations = []string{"tcp:22"}, nil, map[string]string{"team": "x"}
	w.put(edited)
	repaired("an edited Service")
	if s := w.service(t.Context(), name); s.Annotations["team"] != "x" || !slices.Equal(s.Addrs, before.Addrs) {
		t.Errorf("lost in the repair: %+v, before %+v", s, before)
	}
	w.event(g, "TailscaleServiceRepaired", name)
	if err := w.admin.VIPServices().Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	repaired("a deleted Service")
	w.waitReady(g)
}

// A Service that somebody else made is not touched, until a person says so.
func TestForeignService(t *testing.T) {
	w := newWorld(t)
	foreign := owner{OperatorID: "elsewhere", Resource: &resource{Kind: "ProxyGroup", Name: "kube", UID: "u"}}
	name := fmt.Sprintf("taken-%d", serial.Add(1))
	w.put(tailscale.VIPService{Name: "svc:" + name, Ports: []string{"tcp:443"}, Tags: []string{tagK8s}, Annotations: map[string]string{ownerAnnotation: foreign.annotation()}})
	before := w.service(t.Context(), "svc:"+name)
	g := w.group(replicas(1), hostname(name))
	w.waitCondition(g, v1alpha1.KubeAPIServerProxyValid, metav1.ConditionFalse, "the cluster with the ID elsewhere")
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "spec.kubeAPIServer.hostname")
	if left := w.left(t.Context(), g); len(left) > 0 {
		t.Errorf("made for it: %v", left)
	}
	if after := w.service(t.Context(), "svc:"+name); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("it is %+v, was %+v", after, before)
	}
	w.edit(g, func(g *v1alpha1.ProxyGroup) { annotate(g, annotationTakeOver, "svc:"+name) })
	w.waitReady(g)
	w.event(g, "TailscaleServiceTakenOver", "elsewhere")
	w.edit(g, func(g *v1alpha1.ProxyGroup) { annotate(g, annotationTakeOver, "") })

	// Another one takes it over in turn: two must not answer on one name.
	s := *w.service(t.Context(), "svc:"+name)
	s.Annotations = map[string]string{ownerAnnotation: foreign.annotation()}
	w.put(s)
	w.waitCondition(g, v1alpha1.KubeAPIServerProxyValid, metav1.ConditionFalse, "elsewhere")
	w.eventually("no replica", func(ctx context.Context) error {
		var pods corev1.PodList
		if err := w.client.List(ctx, &pods, client.InNamespace(w.namespace)); err != nil || len(pods.Items) > 0 {
			return fmt.Errorf("%d pods, %w", len(pods.Items), err)
		}
		w.read(g)
		if g.Status.URL != "" {
			return fmt.Errorf("url %s", g.Status.URL)
		}
		return nil
	})
	if err := w.client.Delete(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	w.waitGone(g)
	if w.service(t.Context(), "svc:"+name) == nil {
		t.Error("another's Service was deleted with the group")
	}
}

// Whatever else is another's, replicas stop when their Service is.
func TestForeignServiceAndSecret(t *testing.T) {
	w := newWorld(t)
	g := w.group(replicas(1))
	w.waitReady(g)
	w.stop()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: configSecretName(g.Name, 0), Namespace: w.namespace}}
	if err := w.client.Delete(t.Context(), secret.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Create(t.Context(), secret); err != nil { // nobody's, and so not the group's
		t.Fatal(err)
	}
	s := *w.service(t.Context(), "svc:"+g.Name)
	s.Annotations = map[string]string{ownerAnnotation: owner{OperatorID: "elsewhere", Resource: &resource{Kind: "ProxyGroup", Name: "kube", UID: "u"}}.annotation()}
	w.put(s)
	w.start()
	w.waitCondition(g, v1alpha1.KubeAPIServerProxyValid, metav1.ConditionFalse, "elsewhere")
	w.eventually("no replica", func(ctx context.Context) error {
		var pods corev1.PodList
		if err := w.client.List(ctx, &pods, client.InNamespace(w.namespace)); err != nil || len(pods.Items) > 0 {
			return fmt.Errorf("%d pods, %w", len(pods.Items), err)
		}
		return nil
	})
}

// A Service that somebody made by hand is not touched either.
func TestHandmadeService(t *testing.T) {
	w := newWorld(t)
	name := fmt.Sprintf("handmade-%d", serial.Add(1))
	w.put(tailscale.VIPService{Name: "svc:" + name, Ports: []string{"tcp:5432"}, Tags: []string{tagK8s}})
	g := w.group(replicas(1), hostname(name))
	w.waitCondition(g, v1alpha1.KubeAPIServerProxyValid, metav1.ConditionFalse, "by hand")
	if err := w.admin.VIPServices().Delete(t.Context(), "svc:"+name); err != nil {
		t.Fatal(err)
	}
	w.waitReady(g) // without anybody touching the group
}

// A group that is made anew under its name has its Service again.
func TestAdoptedService(t *testing.T) {
	w := newWorld(t)
	g := w.group(replicas(1))
	w.waitReady(g)
	addrs := w.service(t.Context(), "svc:"+g.Name).Addrs
	w.stop()
	// A restored backup: the same name, another UID, no status.
	w.edit(g, func(g *v1alpha1.ProxyGroup) { g.Finalizers = nil })
	if err := w.client.Delete(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	w.waitGone(g)
	again := w.group(replicas(1), func(again *v1alpha1.ProxyGroup) { again.Name = g.Name })
	w.start()
	w.waitReady(again)
	w.event(again, "TailscaleServiceAdopted", "svc:"+g.Name)
	if got := w.service(t.Context(), "svc:"+g.Name).Addrs; !slices.Equal(got, addrs) {
		t.Errorf("addresses %v, were %v", got, addrs)
	}
}

// Two clusters that want one name: the first one has it, and the second says whose it
// is and runs nothing.
func TestTwoClusters(t *testing.T) {
	w := newWorld(t)
	name := fmt.Sprintf("shared-%d", serial.Add(1))
	g := w.group(replicas(1), hostname(name))
	w.waitReady(g)
	cluster := kubernetes.New(t, kubernetes.Options{})
	c, err := newCluster(t.Context(), cluster)
	if err != nil {
		t.Fatal(err)
	}
	second := newWorldIn(t, cluster, c, w.tailnet)
	second.start()
	other := second.group(hostname(name))
	second.waitCondition(other, v1alpha1.KubeAPIServerProxyValid, metav1.ConditionFalse, "ProxyGroup "+g.Name)
	if left := second.left(t.Context(), other); len(left) > 0 {
		t.Errorf("made in the second cluster: %v", left)
	}
	if err := c.Delete(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	second.waitGone(other)
	w.waitReady(g)
	if w.service(t.Context(), "svc:"+name) == nil {
		t.Error("the second cluster deleted the first one's Service")
	}
	// The first one gives the name up.
	if err := w.client.Delete(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	w.waitGone(g)
	other = second.group(hostname(name))
	second.waitCondition(other, v1alpha1.KubeAPIServerProxyValid, metav1.ConditionTrue, "svc:"+name)
}

// Objects that exist and are somebody else's are not taken over, and nothing is made
// beside them.
func TestForeignObjects(t *testing.T) {
	w := newWorld(t)
	name := fmt.Sprintf("kube-%d", serial.Add(1))
	theirs := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{
		Name: name, Namespace: w.namespace, Annotations: map[string]string{"meta.helm.sh/release-name": "database"},
	}}
	w.create(theirs)
	g := w.group(replicas(1), func(g *v1alpha1.ProxyGroup) { g.Name = name })
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "belongs to the Helm release database")
	if w.exists(t.Context(), theirs, name); len(theirs.OwnerReferences)+len(theirs.Labels) > 0 {
		t.Errorf("taken over: %+v", theirs.ObjectMeta)
	}
	for _, object := range w.left(t.Context(), g) {
		if !strings.HasPrefix(object, "Secret ") {
			t.Errorf("made: %s", object)
		}
	}
	if err := w.client.Delete(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	w.waitReady(g)
	if err := w.client.Delete(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	w.waitGone(g)
	w.checkNothingLeft(g)
}

// A Secret of somebody else is not filled with a device's state.
func TestForeignSecret(t *testing.T) {
	w := newWorld(t)
	name := fmt.Sprintf("kube-%d", serial.Add(1))
	w.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name + "-0", Namespace: w.namespace}})
	g := w.group(replicas(1), func(g *v1alpha1.ProxyGroup) { g.Name = name })
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "Secret "+w.namespace+"/"+name+"-0 exists already and belongs to somebody else")
}

// A group of another operator is left alone wholly; one that says nothing is taken by
// the operator that sees it first.
func TestOtherOperators(t *testing.T) {
	w := newWorld(t)
	theirs := w.group(func(g *v1alpha1.ProxyGroup) { annotate(g, annotationOperator, "elsewhere/operator") })
	mine := w.group(replicas(1))
	w.waitReady(mine)
	w.read(theirs)
	if len(theirs.Finalizers) > 0 || len(theirs.Status.Conditions) > 0 || len(w.left(t.Context(), theirs)) > 0 {
		t.Errorf("touched: %v %v", theirs.Finalizers, theirs.Status)
	}
	if err := w.client.Delete(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
}

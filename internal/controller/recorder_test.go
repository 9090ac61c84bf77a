// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// recorder makes a Recorder with a unique name.
func (w *world) recorder(spec v1alpha1.RecorderSpec) *v1alpha1.Recorder {
	w.t.Helper()
	r := &v1alpha1.Recorder{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("recorder-%d", serial.Add(1)), Annotations: map[string]string{annotationOperator: w.config.Operator}},
		Spec:       spec,
	}
	w.create(r)
	return r
}

// waitTaking waits until all replicas of a recorder are ready, as its spec is now.
func (w *world) waitTaking(r *v1alpha1.Recorder) {
	w.t.Helper()
	w.waitCondition(r, v1alpha1.RecorderReady, metav1.ConditionTrue, "RecorderCreated")
}

// scaleRecorder changes the number of a recorder's replicas.
func (w *world) scaleRecorder(r *v1alpha1.Recorder, n int32) {
	w.t.Helper()
	w.read(r)
	base := r.DeepCopy()
	r.Spec.Replicas = &n
	if err := w.client.Patch(w.t.Context(), r, client.MergeFrom(base)); err != nil {
		w.t.Fatal(err)
	}
}

// delete deletes an object.
func (w *world) delete(object client.Object) {
	w.t.Helper()
	if err := w.client.Delete(w.t.Context(), object); err != nil {
		w.t.Fatal(err)
	}
}

// A recorder becomes ready by itself and says what people may not expect; everything of it
// is marked as its own, and when it is deleted nothing is left.
func TestRecorderFromApplyToNothingLeft(t *testing.T) {
	w := newWorld(t)
	r := w.recorder(v1alpha1.RecorderSpec{EnableUI: true})
	w.waitTaking(r)
	message := condition(r, v1alpha1.RecorderReady).Message
	for _, want := range []string{"1/1 replicas are ready", "lost with them", "no effect: spec.enableUI", "kubectl exec"} {
		if !strings.Contains(message, want) {
			t.Errorf("message %q lacks %q", message, want)
		}
	}
	if c := condition(r, v1alpha1.TailscaleAPIAvailable); c.Status != metav1.ConditionTrue {
		t.Errorf("the API is %s: %s", c.Status, c.Message)
	}
	if d := r.Status.Devices; len(d) != 1 || d[0].Hostname != r.Name+"-0" || len(d[0].TailnetIPs) != 2 {
		t.Errorf("devices %+v", d)
	}
	w.eventually("the auth key taken away", func(ctx context.Context) error {
		s := &corev1.Secret{}
		if !w.exists(ctx, s, configSecretName(r.Name, 0)) || s.Data[keyAuthKey] != nil || s.Annotations[annotationKeyID] != "" {
			return fmt.Errorf("%v %v", s.Data, s.Annotations)
		}
		return nil
	})
	// Nothing of a ProxyGroup is made of it.
	left := w.left(t.Context(), r)
	slices.Sort(left)
	want := []string{"Pod " + r.Name + "-0", "Role " + r.Name, "RoleBinding " + r.Name, "Secret " + r.Name + "-0", "Secret " + r.Name + "-0-config", "ServiceAccount " + r.Name, "StatefulSet " + r.Name}
	if !slices.Equal(left, want) {
		t.Errorf("objects %q, want %q", left, want)
	}
	args := w.statefulSet(r).Spec.Template.Spec.Containers[0].Args
	for _, want := range []string{"recorder", "--from=tag:k8s-operator,tag:k8s", "--tags=tag:k8s", "--login-server=" + w.tailnet.URL()} {
		if !slices.Contains(args, want) {
			t.Errorf("arguments %q lack %s", args, want)
		}
	}
	w.event(r, "RecorderCreated", "1/1")
	w.delete(r)
	w.waitGone(r)
	w.checkNothingLeft(r)
}

// A recorder is ready when its pods say so, and not before: what they lack is in the
// message.
func TestRecorderTellsWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	w.kubelet.report(map[string]string{"disk": "the disk of the recorder is full"})
	r := w.recorder(v1alpha1.RecorderSpec{Replicas: ptr.To[int32](2)})
	w.waitCondition(r, v1alpha1.RecorderReady, metav1.ConditionFalse, "RecorderCreating: 0/2 replicas are ready; replicas 0-1: disk: the disk of the recorder is full")
	w.kubelet.report(nil)
	w.waitTaking(r)
	w.scaleRecorder(r, 1)
	w.waitDevices(r.Name + "-0")
	w.waitTaking(r)
	w.scaleRecorder(r, 0)
	w.waitCondition(r, v1alpha1.RecorderReady, metav1.ConditionFalse, reasonScaledToZero)
	w.waitDevices()
}

// A recorder that needs nothing of the Tailscale API says within a while that the operator
// cannot use it, and that it can again. It takes recordings meanwhile.
func TestRecorderTellsOfTheAPI(t *testing.T) {
	w := newWorld(t)
	r := w.recorder(v1alpha1.RecorderSpec{})
	w.waitTaking(r)
	w.waitCondition(r, v1alpha1.TailscaleAPIAvailable, metav1.ConditionTrue, "")
	for _, name := range []string{"401", "500"} {
		f := failures[name]
		w.tailnet.Fail(f.path, f.fault)
		w.waitCondition(r, v1alpha1.TailscaleAPIAvailable, metav1.ConditionFalse, f.reason)
		if c := condition(r, v1alpha1.RecorderReady); c.Status != metav1.ConditionTrue {
			t.Errorf("%s: ready is %s: %s", name, c.Status, c.Message)
		}
		w.tailnet.ClearFaults()
		w.waitCondition(r, v1alpha1.TailscaleAPIAvailable, metav1.ConditionTrue, "")
	}
}

// Volumes outlive the Recorder, and a new one of the same name has them again.
func TestRecorderKeepsVolumes(t *testing.T) {
	w := newWorld(t)
	size := apiresource.MustParse("1Gi")
	spec := v1alpha1.RecorderSpec{
		Tags: []v1alpha1.Tag{tagK8s}, Storage: &v1alpha1.RecorderStorage{PersistentVolumeClaim: &v1alpha1.RecorderVolume{Size: size}},
		Recordings: &v1alpha1.Recordings{Keep: "720h", KeepAtLeast: "24h", MaxTotal: &size, From: []v1alpha1.Tag{"tag:a"}},
	}
	r := w.recorder(spec)
	w.waitTaking(r)
	if message := condition(r, v1alpha1.RecorderReady).Message; message != "1/1 replicas are ready" {
		t.Errorf("message %q", message)
	}
	args := w.statefulSet(r).Spec.Template.Spec.Containers[0].Args
	for _, want := range []string{"--keep=720h", "--keep-at-least=24h", "--max-total=1Gi", "--from=tag:a"} {
		if !slices.Contains(args, want) {
			t.Errorf("arguments %q lack %s", args, want)
		}
	}
	claim := &corev1.PersistentVolumeClaim{}
	name := "recordings-" + r.Name + "-0"
	if !w.exists(t.Context(), claim, name) {
		t.Fatalf("there is no PersistentVolumeClaim %s", name)
	}
	uid := claim.UID
	w.delete(r)
	w.waitGone(r)
	w.checkNothingLeft(r)
	again := &v1alpha1.Recorder{ObjectMeta: metav1.ObjectMeta{Name: r.Name, Annotations: r.Annotations}, Spec: spec}
	w.create(again)
	w.waitTaking(again)
	if !w.exists(t.Context(), claim, name) || claim.UID != uid || claim.DeletionTimestamp != nil {
		t.Errorf("the volume is another one: %s, want %s", claim.UID, uid)
	}
}

// A recorder that was taken over can name any device as its own. The operator deletes none
// but that of the recorder.
func TestRecorderNamesAnotherDevice(t *testing.T) {
	w := newWorld(t)
	database := w.device("database")
	r := w.recorder(v1alpha1.RecorderSpec{Replicas: ptr.To[int32](2)})
	w.waitTaking(r)
	w.tell(r, 1, map[string]any{tailnet.FieldDeviceID: database})
	w.scaleRecorder(r, 1)
	w.event(r, "DeviceNotDeleted", database)
	w.waitDevices("database", r.Name+"-0")
	w.tell(r, 0, map[string]any{tailnet.FieldDeviceID: database})
	w.delete(r)
	w.waitGone(r)
	w.waitDevices("database")
}

// What is somebody else's is not touched: neither an object that was there before, nor what
// a ProxyGroup of the same name has.
func TestRecorderTouchesNothingOfOthers(t *testing.T) {
	w := newWorld(t)
	g := w.group(replicas(1))
	w.waitReady(g)
	before := w.statefulSet(g)
	r := &v1alpha1.Recorder{ObjectMeta: metav1.ObjectMeta{Name: g.Name, Annotations: g.Annotations}}
	w.create(r)
	w.waitCondition(r, v1alpha1.RecorderReady, metav1.ConditionFalse, "RecorderInvalid: Secret "+w.namespace+"/"+g.Name+"-0 exists already and belongs to ProxyGroup "+g.Name)
	w.delete(r)
	w.waitGone(r)
	w.waitReady(g)
	if after := w.statefulSet(g); after.UID != before.UID || after.Generation != before.Generation {
		t.Errorf("the group's StatefulSet has changed: %+v", after.ObjectMeta)
	}
	foreign := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "vault", Namespace: w.namespace}}
	w.create(foreign)
	r = w.recorder(v1alpha1.RecorderSpec{StatefulSet: &v1alpha1.RecorderStatefulSet{Pod: &v1alpha1.RecorderPod{ServiceAccount: &v1alpha1.RecorderServiceAccount{Name: "vault"}}}})
	w.waitCondition(r, v1alpha1.RecorderReady, metav1.ConditionFalse, "RecorderInvalid: ServiceAccount "+w.namespace+"/vault exists already")
	if w.exists(t.Context(), &appsv1.StatefulSet{}, r.Name) {
		t.Error("there is a StatefulSet")
	}
	if w.read(foreign); len(foreign.OwnerReferences) > 0 {
		t.Errorf("the ServiceAccount has the owners %v", foreign.OwnerReferences)
	}
}

// What the schema lets pass and the API server would refuse is told.
func TestRecorderIsInvalid(t *testing.T) {
	w := newWorld(t)
	r := w.recorder(v1alpha1.RecorderSpec{StatefulSet: &v1alpha1.RecorderStatefulSet{Pod: &v1alpha1.RecorderPod{
		NodeSelector: map[string]string{"a b": "c"}, Container: &v1alpha1.RecorderContainer{Image: "tailscale/tsrecorder:stable"},
	}}})
	w.waitCondition(r, v1alpha1.RecorderReady, metav1.ConditionFalse, "RecorderInvalid: spec.statefulSet.pod.container.image: Invalid value: \"tailscale/tsrecorder:stable\"")
	if message := condition(r, v1alpha1.RecorderReady).Message; !strings.Contains(message, "nodeSelector") {
		t.Errorf("message %q", message)
	}
	w.event(r, "RecorderInvalid", "tsrecorder")
}

// A recorder that is repaired has what it had: its Secrets' labels, its pods.
func TestRecorderIsRepaired(t *testing.T) {
	w := newWorld(t)
	r := w.recorder(v1alpha1.RecorderSpec{})
	w.waitTaking(r)
	device := w.told(r, 0, tailnet.FieldDeviceID)
	uid := w.statefulSet(r).UID
	w.delete(&appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: r.Name, Namespace: w.namespace}})
	w.eventually("another StatefulSet, with the same device", func(ctx context.Context) error {
		set := &appsv1.StatefulSet{}
		if !w.exists(ctx, set, r.Name) || set.UID == uid {
			return errors.New("none yet")
		}
		pod := &corev1.Pod{}
		if err := w.client.Get(ctx, types.NamespacedName{Namespace: w.namespace, Name: r.Name + "-0"}, pod); err != nil {
			return err
		}
		if !strings.EqualFold(w.told(r, 0, tailnet.FieldPodUID), string(pod.UID)) {
			return errors.New("the new pod has not told yet")
		}
		return nil
	})
	w.waitTaking(r)
	if now := w.told(r, 0, tailnet.FieldDeviceID); now != device {
		t.Errorf("device %s, want %s", now, device)
	}
}

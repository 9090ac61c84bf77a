// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Volume makes a PersistentVolume for a claim of the release's namespace: a folder of the
// control plane, which no test drains, and which kind's own provisioner of volumes need not
// be there for. It goes when the test ends, with what is on it.
func (r *Release) Volume(t *testing.T, claim string) {
	t.Helper()
	node, err := r.suite.ControlPlane()
	if err != nil {
		t.Fatal(err)
	}
	name := r.Namespace + "-" + claim
	path := "/var/local/" + name
	if err := node.CommandContext(t.Context(), "mkdir", "-p", path).Run(); err != nil {
		t.Fatalf("mkdir %s on %s: %v", path, node, err)
	}
	volume := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")},
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			StorageClassName:              "standard", // kind's default
			ClaimRef:                      &corev1.ObjectReference{Namespace: r.Namespace, Name: claim},
			// Not a hostPath: those do not get the pod's fsGroup.
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node.String()}}},
			}}}},
		},
	}
	volumes := r.suite.Kube.CoreV1().PersistentVolumes()
	if _, err := volumes.Create(t.Context(), volume, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own context has ended. Its namespace is still there, or has just gone.
		if err := volumes.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		if err := node.Command("rm", "-rf", path).Run(); err != nil {
			t.Errorf("rm -rf %s on %s: %v", path, node, err)
		}
	})
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// secretsStore is the namespace of the CSI driver.
const secretsStore = "secrets-store"

// InstallSecretsStore installs a CSI driver of this name, which makes volumes with the
// given files for pods that ask for the class. It stays until the cluster ends: a volume
// cannot be taken away without its driver.
func (s *Suite) InstallSecretsStore(t *testing.T, driver, class string, files map[string]string) {
	t.Helper()
	ctx, namespaces := t.Context(), s.Kube.CoreV1().Namespaces()
	// One of an earlier run has other files.
	if err := namespaces.Delete(ctx, secretsStore, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	Wait(t, "an earlier CSI driver to be gone", func(ctx context.Context) bool {
		_, err := namespaces.Get(ctx, secretsStore, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	for _, make := range []func() error{
		func() error {
			_, err := namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: secretsStore}}, metav1.CreateOptions{})
			return err
		},
		func() error {
			secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: class}, StringData: files}
			_, err := s.Kube.CoreV1().Secrets(secretsStore).Create(ctx, secret, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := s.Kube.StorageV1().CSIDrivers().Create(ctx, csiDriver(driver), metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := s.Kube.AppsV1().DaemonSets(secretsStore).Create(ctx, secretsStoreDaemonSet(driver, class), metav1.CreateOptions{})
			return err
		},
	} {
		if err := make(); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	Wait(t, "the CSI driver on every node", func(ctx context.Context) bool {
		list, err := s.Kube.StorageV1().CSINodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return false
		}
		n := 0
		for _, node := range list.Items {
			for _, d := range node.Spec.Drivers {
				if d.Name == driver {
					n++
				}
			}
		}
		return n == len(clusterConfig().Nodes)
	})
}

// csiDriver is a driver of inline volumes only.
func csiDriver(name string) *storagev1.CSIDriver {
	return &storagev1.CSIDriver{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: storagev1.CSIDriverSpec{
			AttachRequired: new(false), PodInfoOnMount: new(true), FSGroupPolicy: new(storagev1.NoneFSGroupPolicy),
			VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral},
		},
	}
}

// secretsStoreDaemonSet runs the driver on each node, where it sees the kubelet's folder
// and the files.
func secretsStoreDaemonSet(driver, class string) *appsv1.DaemonSet {
	const kubelet, files = "/var/lib/kubelet", "/files"
	labels := map[string]string{"app": secretsStore}
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "driver"},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					TerminationGracePeriodSeconds: new(int64),
					Containers: []corev1.Container{{
						Name: "driver", Image: WorkloadImage, ImagePullPolicy: corev1.PullNever,
						Command: []string{"/bin/secretsstore", driver, "$(NODE)", files},
						Env: []corev1.EnvVar{{Name: "NODE", ValueFrom: &corev1.EnvVarSource{
							FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"},
						}}},
						VolumeMounts: []corev1.VolumeMount{
							{Name: "kubelet", MountPath: kubelet},
							{Name: "files", MountPath: files + "/" + class},
						},
					}},
					Volumes: []corev1.Volume{
						{Name: "kubelet", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: kubelet}}},
						{Name: "files", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: class}}},
					},
				},
			},
		},
	}
}

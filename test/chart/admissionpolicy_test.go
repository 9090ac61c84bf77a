// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"context"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const guardedNamespace = "guarded"

var tried = metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}

// testAdmissionPolicy has a pod that may write a Secret and a Lease try to change what else
// they have: its own namespace's policy lets it change data alone. Who may make Secrets may
// do all, as before.
func testAdmissionPolicy(t *testing.T, r *rig) {
	t.Helper()
	r.namespace(t, guardedNamespace)
	mustRun(t, r.upgrade(t.Context(), "guarded", guardedNamespace))
	r.makeReplica(t, "tools-0")
	replica := r.as(t, "tools")

	// The API server learns of a policy a moment after it is made.
	var last error
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		last = patchSecret(ctx, replica, `{"metadata":{"labels":{"owner":"helm"}}}`)
		return apierrors.IsForbidden(last), nil
	})
	if err != nil {
		t.Fatalf("the replica can make its Secret a release of helm: %v", last)
	}
	for _, patch := range []string{
		`{"metadata":{"labels":null}}`,
		`{"metadata":{"annotations":{"a":"b"}}}`,
		`{"metadata":{"ownerReferences":null}}`,
		`{"metadata":{"finalizers":["example.com/a"]}}`,
		`{"data":{"a":"Yg=="},"metadata":{"labels":{"owner":"helm"}}}`,
	} {
		// Of owners, the admission plugin OwnerReferencesPermissionEnforcement speaks first.
		if err := patchSecret(t.Context(), replica, patch); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "may change the data of the object") && !strings.Contains(patch, "ownerReferences") {
			t.Errorf("patch %s: %v, want that it is forbidden", patch, err)
		}
		lease := strings.ReplaceAll(patch, `"data":{"a":"Yg=="}`, `"spec":{"holderIdentity":"b"}`)
		if err := patchLease(t.Context(), replica, lease); !apierrors.IsForbidden(err) {
			t.Errorf("patch of the Lease %s: %v, want that it is forbidden", lease, err)
		}
	}
	// The operator could never update it again.
	if err := patchSecret(t.Context(), replica, `{"immutable":true}`); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "not make it immutable") {
		t.Errorf("the replica can make its Secret immutable: %v", err)
	}
	if err := patchSecret(t.Context(), replica, `{"data":{"a":"Yg=="}}`); err != nil {
		t.Errorf("the replica cannot change data: %v", err)
	}
	if err := patchLease(t.Context(), replica, `{"spec":{"holderIdentity":"tools-0"}}`); err != nil {
		t.Errorf("the replica cannot hold its Lease: %v", err)
	}
	if err := patchSecret(t.Context(), r.as(t, "operator"), `{"metadata":{"labels":{"a":"b"}}}`); err != nil {
		t.Errorf("the operator cannot change labels: %v", err)
	}
}

// makeReplica makes a Secret and a Lease that belong to something, and lets the
// ServiceAccount "tools" write both, as those of ProxyGroups may.
func (r *rig) makeReplica(t *testing.T, name string) {
	t.Helper()
	ctx, client := t.Context(), r.Client()
	namespace, err := client.CoreV1().Namespaces().Get(ctx, guardedNamespace, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	meta := metav1.ObjectMeta{
		Name: name, Labels: map[string]string{"a": "b"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Namespace", Name: namespace.Name, UID: namespace.UID}},
	}
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "tools"}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"secrets"}, ResourceNames: []string{name}, Verbs: []string{"get", "patch"}},
		{APIGroups: []string{coordinationv1.GroupName}, Resources: []string{"leases"}, ResourceNames: []string{name}, Verbs: []string{"patch"}},
	}}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "tools"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "tools"},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: guardedNamespace, Name: "tools"}},
	}
	for _, create := range []func() error{
		func() error {
			_, err := client.CoreV1().Secrets(guardedNamespace).Create(ctx, &corev1.Secret{ObjectMeta: meta}, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := client.CoordinationV1().Leases(guardedNamespace).Create(ctx, &coordinationv1.Lease{ObjectMeta: meta}, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := client.RbacV1().Roles(guardedNamespace).Create(ctx, role, metav1.CreateOptions{})
			return err
		},
		func() error {
			_, err := client.RbacV1().RoleBindings(guardedNamespace).Create(ctx, binding, metav1.CreateOptions{})
			return err
		},
	} {
		if err := create(); err != nil {
			t.Fatal(err)
		}
	}
}

// as is a client that is a ServiceAccount of the guarded namespace.
func (r *rig) as(t *testing.T, account string) kubernetes.Interface {
	t.Helper()
	config := rest.CopyConfig(r.Config())
	config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:" + guardedNamespace + ":" + account,
		Groups:   []string{"system:serviceaccounts", "system:serviceaccounts:" + guardedNamespace, "system:authenticated"},
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// patchSecret only tries: what is let through must not be there the next time.
func patchSecret(ctx context.Context, as kubernetes.Interface, patch string) error {
	_, err := as.CoreV1().Secrets(guardedNamespace).Patch(ctx, "tools-0", types.MergePatchType, []byte(patch), tried)
	return err
}

func patchLease(ctx context.Context, as kubernetes.Interface, patch string) error {
	_, err := as.CoordinationV1().Leases(guardedNamespace).Patch(ctx, "tools-0", types.MergePatchType, []byte(patch), tried)
	return err
}

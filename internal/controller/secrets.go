// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/internal/workload"
)

// ensureSecrets makes the Secrets of the replicas that are wanted, and the one they share. They are made here,
// never by templates: what replicas wrote into them must not be rendered away.
func (f *fleet) ensureSecrets(ctx context.Context) error {
	wanted := f.wanted()
	for i := range wanted {
		if err := f.ensureReplicaSecrets(ctx, &wanted[i]); err != nil {
			return f.noteNotOurs(err)
		}
	}
	if f.sharedName == "" || f.shared != nil {
		return nil
	}
	secret := f.newSecret(f.sharedName, "certs")
	secret.Type, secret.Data = corev1.SecretTypeTLS, map[string][]byte{corev1.TLSCertKey: {}, corev1.TLSPrivateKeyKey: {}}
	var err error
	f.shared, err = f.makeSecret(ctx, secret)
	return f.noteNotOurs(err)
}

// ensureReplicaSecrets makes the Secrets of one replica. The config Secret tells what
// the replica's device has on the tailnet, before there is a device.
func (f *fleet) ensureReplicaSecrets(ctx context.Context, r *replica) (err error) {
	if r.state == nil {
		if r.state, err = f.makeSecret(ctx, f.newSecret(stateSecretName(f.parent.GetName(), r.ordinal), "state")); err != nil {
			return err
		}
	}
	identities := identitiesWith(r.config, f.identity(r.ordinal))
	if r.config == nil {
		secret := f.newSecret(configSecretName(f.parent.GetName(), r.ordinal), "config")
		annotate(secret, annotationIdentities, identities)
		r.config, err = f.makeSecret(ctx, secret)
		return err
	}
	if r.config.Annotations[annotationIdentities] == identities {
		return nil
	}
	return f.patchSecret(ctx, r.config, func(s *corev1.Secret) { annotate(s, annotationIdentities, identities) })
}

// newSecret returns an empty Secret of the parent.
func (f *fleet) newSecret(name, kind string) *corev1.Secret {
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{labelSecretType: kind}}, Type: corev1.SecretTypeOpaque}
	f.set.Stamp(secret)
	return secret
}

// noteNotOurs makes an object that is somebody else's a reason why the parent is
// invalid, and returns other errors.
func (f *fleet) noteNotOurs(err error) error {
	notOurs, ok := isNotOurs(err)
	switch {
	case !ok:
		return err
	case notOurs.Leaving:
		return err // the queue tries again
	}
	f.invalid = notOurs.Error() + ": delete it, or give the " + f.kind.name + " another name"
	return nil
}

// makeSecret makes a Secret that does not exist, or that does not look like the parent's
// any more.
func (f *fleet) makeSecret(ctx context.Context, secret *corev1.Secret) (*corev1.Secret, error) {
	if err := f.set.Claim(ctx, corev1.SchemeGroupVersion.WithKind("Secret"), secret.Name); err != nil {
		return nil, err
	}
	labels := secret.Labels
	err := f.client.Create(ctx, secret, client.FieldOwner(workload.FieldManager))
	if apierrors.IsAlreadyExists(err) {
		return f.relabelSecret(ctx, secret.Name, labels, err)
	} else if err != nil {
		return nil, fmt.Errorf("making Secret %s: %w", secret.Name, err)
	}
	return secret, nil
}

// relabelSecret gives a Secret of the parent the labels back by which it is found. exists
// is why it was not made.
func (f *fleet) relabelSecret(ctx context.Context, name string, labels map[string]string, exists error) (*corev1.Secret, error) {
	secret := &corev1.Secret{}
	if err := f.live.Get(ctx, types.NamespacedName{Namespace: f.config.Namespace, Name: name}, secret); err != nil {
		return nil, fmt.Errorf("reading Secret %s: %w", name, err)
	}
	if !metav1.IsControlledBy(secret, f.parent) || secret.DeletionTimestamp != nil {
		return nil, fmt.Errorf("making Secret %s: %w", name, exists) // it has come, or is about to go
	}
	f.config.Log.WarnContext(ctx, "a Secret had lost its labels", f.kind.label, f.parent.GetName(), "secret", name)
	return secret, f.patchSecret(ctx, secret, func(s *corev1.Secret) {
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		maps.Copy(s.Labels, labels)
	})
}

// patchSecret changes a Secret, only where change does.
func (f *fleet) patchSecret(ctx context.Context, secret *corev1.Secret, change func(*corev1.Secret)) error {
	base := secret.DeepCopy()
	change(secret)
	if err := f.client.Patch(ctx, secret, client.MergeFrom(base), client.FieldOwner(workload.FieldManager)); err != nil {
		return fmt.Errorf("writing Secret %s: %w", secret.Name, err)
	}
	return nil
}

// annotate sets an annotation, or removes it when value is empty.
func annotate(object metav1.Object, name, value string) {
	annotations := object.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	if annotations[name] = value; value == "" {
		delete(annotations, name)
	}
	object.SetAnnotations(annotations)
}

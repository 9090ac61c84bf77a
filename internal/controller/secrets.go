// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/internal/tailapi"
	"github.com/tailhelm/tailhelm/internal/tailnet"
	"github.com/tailhelm/tailhelm/internal/workload"
)

// ensureSecrets makes the Secrets of the replicas that are wanted. They are made here,
// never by templates: what replicas wrote into them must not be rendered away.
func (p *pass) ensureSecrets(ctx context.Context) error {
	wanted := p.wanted()
	for i := range wanted {
		r := &wanted[i]
		var err error
		if r.state == nil {
			r.state, err = p.makeSecret(ctx, stateSecretName(p.group.Name, r.ordinal), "state", corev1.SecretTypeOpaque, nil)
		}
		if err == nil && r.config == nil {
			r.config, err = p.makeSecret(ctx, configSecretName(p.group.Name, r.ordinal), "config", corev1.SecretTypeOpaque, nil)
		}
		if err != nil {
			return p.noteNotOurs(err)
		}
	}
	if p.tls != nil {
		return nil
	}
	empty := map[string][]byte{corev1.TLSCertKey: {}, corev1.TLSPrivateKeyKey: {}}
	var err error
	p.tls, err = p.makeSecret(ctx, tlsSecretName(p.group.Name), "certs", corev1.SecretTypeTLS, empty)
	return p.noteNotOurs(err)
}

// noteNotOurs makes an object that is somebody else's a reason why the group is
// invalid, and returns other errors.
func (p *pass) noteNotOurs(err error) error {
	notOurs, ok := isNotOurs(err)
	switch {
	case !ok:
		return err
	case notOurs.Leaving:
		return err // the queue tries again
	}
	p.invalid = notOurs.Error() + ": delete it, or give the ProxyGroup another name"
	return nil
}

// makeSecret makes a Secret that does not exist.
func (p *pass) makeSecret(ctx context.Context, name, kind string, of corev1.SecretType, data map[string][]byte) (*corev1.Secret, error) {
	if err := p.set.Claim(ctx, corev1.SchemeGroupVersion.WithKind("Secret"), name); err != nil {
		return nil, err
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{labelSecretType: kind}}, Type: of, Data: data}
	p.set.Stamp(secret)
	if err := p.client.Create(ctx, secret, client.FieldOwner(workload.FieldManager)); err != nil {
		return nil, fmt.Errorf("making Secret %s: %w", name, err)
	}
	return secret, nil
}

// ensureKeys gives the replicas that need one an auth key, and takes away those that
// were used.
func (p *pass) ensureKeys(ctx context.Context) error {
	var errs []error
	for _, r := range p.wanted() {
		if err := p.ensureKey(ctx, r); err != nil {
			errs = append(errs, err)
		}
	}
	api, other := firstAPI(errs...)
	return errors.Join(p.noteAPI(api), other)
}

// ensureKey does what the state of one replica asks for:
//
//   - no device yet, and no key that counts: mint one;
//   - the replica says that its key was refused: mint another. The key stays until
//     another device has logged in with it, or it ends, because the old device's ID
//     stays in the Secret until then;
//   - a device, and a key: take the key away. It was for one login.
func (p *pass) ensureKey(ctx context.Context, r replica) error {
	key, ends := string(r.config.Data[keyAuthKey]), keyEnds(r.config)
	usable := key != "" && time.Now().Before(ends)
	device := r.deviceID()
	refused, asks := r.state.Data[tailnet.KeyReissue]
	if asks {
		return p.reissueKey(ctx, r, usable && key != string(refused), ends)
	}
	switch {
	case device == "" && !usable:
		return p.mintKey(ctx, r, "")
	case device != "" && key != "" && (!usable || r.config.Annotations[annotationKeyReplaces] != device):
		return p.dropKey(ctx, r)
	case key != "":
		p.lookAgain(max(time.Until(ends), time.Second))
	}
	return nil
}

// reissueKey gives a replica that asks for it another auth key, unless it has one that
// it has not seen yet. ends is when the last key ends.
func (p *pass) reissueKey(ctx context.Context, r replica, has bool, ends time.Time) error {
	if has {
		return p.dropMarker(ctx, r)
	}
	if wait := time.Until(ends.Add(p.config.timing.reissue - p.config.timing.keyLife)); len(r.config.Data[keyAuthKey]) > 0 && wait > 0 {
		p.lookAgain(wait)
		return nil
	}
	if err := p.mintKey(ctx, r, r.deviceID()); err != nil {
		return err
	}
	if r.deviceID() != "" || len(r.state.Data[tailnet.KeyReissue]) > 0 { // else it was only faster than we
		p.event(p.group, corev1.EventTypeWarning, "AuthKeyReissued", "EnsureAuthKey", "replica %d could not log in and got another auth key", r.ordinal)
	}
	return p.dropMarker(ctx, r)
}

// keyEnds returns until when the auth key in a config Secret counts.
func keyEnds(config *corev1.Secret) time.Time {
	ends, err := time.Parse(time.RFC3339, config.Annotations[annotationKeyEnds])
	if err != nil {
		return time.Time{}
	}
	return ends
}

// mintKey puts a fresh auth key into a replica's config Secret. device is the device
// that the login replaces, or "".
func (p *pass) mintKey(ctx context.Context, r replica, device string) error {
	var key tailapi.Key
	err := p.gate.do(func(api *tailapi.Client) (err error) {
		key, err = api.CreateKey(ctx, p.tags(), "ProxyGroup "+p.group.Name, p.config.timing.keyLife)
		return err
	})
	if err != nil {
		return err
	}
	old := r.config.Annotations[annotationKeyID]
	err = p.patchSecret(ctx, r.config, func(s *corev1.Secret) {
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		s.Data[keyAuthKey] = []byte(key.Secret)
		annotate(s, annotationKeyID, key.ID)
		annotate(s, annotationKeyEnds, key.Ends.UTC().Format(time.RFC3339))
		annotate(s, annotationKeyReplaces, device)
	})
	if err != nil {
		p.revoke(ctx, key.ID) // nobody would know of it
		return err
	}
	if old != "" {
		p.revoke(ctx, old)
	}
	return nil
}

// revoke deletes an auth key that nobody is to use any more. It is an attempt: the key
// ends by itself.
func (p *pass) revoke(ctx context.Context, id string) {
	if err := p.gate.do(func(api *tailapi.Client) error { return api.DeleteKey(ctx, id) }); err != nil {
		p.config.Log.InfoContext(ctx, "an auth key was not revoked, and ends by itself", "proxyGroup", p.group.Name, "key", id, "error", err)
	}
}

// dropKey removes the auth key that was used from a replica's config Secret.
func (p *pass) dropKey(ctx context.Context, r replica) error {
	return p.patchSecret(ctx, r.config, func(s *corev1.Secret) {
		delete(s.Data, keyAuthKey)
		for _, name := range []string{annotationKeyID, annotationKeyEnds, annotationKeyReplaces} {
			delete(s.Annotations, name)
		}
	})
}

// dropMarker tells a replica that it has another key.
func (p *pass) dropMarker(ctx context.Context, r replica) error {
	return p.patchSecret(ctx, r.state, func(s *corev1.Secret) { delete(s.Data, tailnet.KeyReissue) })
}

// patchSecret changes a Secret, only where change does.
func (p *pass) patchSecret(ctx context.Context, secret *corev1.Secret, change func(*corev1.Secret)) error {
	base := secret.DeepCopy()
	change(secret)
	if err := p.client.Patch(ctx, secret, client.MergeFrom(base), client.FieldOwner(workload.FieldManager)); err != nil {
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

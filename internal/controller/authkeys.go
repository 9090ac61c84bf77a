// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tailhelm/tailhelm/internal/tailapi"
	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// keyBurst is how many auth keys a replica may have one after the other; then it may have
// one per timing.keyEvery. Who holds a replica can ask for keys, and make a device with
// the parent's tags of each.
const keyBurst = 5

// ensureKeys gives the replicas that need one an auth key, and takes away those that
// were used.
func (f *fleet) ensureKeys(ctx context.Context) error {
	var errs []error
	for _, r := range f.wanted() {
		if err := f.ensureKey(ctx, r); err != nil {
			errs = append(errs, err)
		}
	}
	api, other := firstAPI(errs...)
	return errors.Join(f.noteAPI(api), other)
}

// ensureKey does what the state of one replica asks for:
//
//   - no device yet, and no key that counts: mint one;
//   - the replica says that its key was refused: mint another. The key stays until
//     another device has logged in with it, or it ends, because the old device's ID
//     stays in the Secret until then;
//   - a device, and a key: take the key away. It was for one login.
//
// A replica has one key at a time: before another one is minted, the last one is revoked.
func (f *fleet) ensureKey(ctx context.Context, r replica) error {
	key, ends := string(r.config.Data[keyAuthKey]), annotatedTime(r.config, annotationKeyEnds)
	usable := key != "" && time.Now().Before(ends)
	device := r.deviceID()
	refused, asks := r.state.Data[tailnet.FieldReissue]
	if asks {
		return f.reissueKey(ctx, r, usable && key != string(refused))
	}
	switch {
	case device == "" && !usable:
		_, err := f.mintKey(ctx, r, "")
		return err
	case device != "" && key != "" && (!usable || r.config.Annotations[annotationKeyReplaces] != device):
		return f.dropKey(ctx, r)
	case key != "":
		f.lookAgain(max(time.Until(ends), time.Second))
	}
	return nil
}

// reissueKey gives a replica that asks for it another auth key, unless it has one that
// it has not seen yet.
func (f *fleet) reissueKey(ctx context.Context, r replica, has bool) error {
	if has {
		return f.dropMarker(ctx, r)
	}
	if minted, err := f.mintKey(ctx, r, r.deviceID()); err != nil || !minted {
		return err
	}
	if r.deviceID() != "" || len(r.state.Data[tailnet.FieldReissue]) > 0 { // else it was only faster than we
		f.event(corev1.EventTypeWarning, "AuthKeyReissued", "EnsureAuthKey", "replica %d could not log in and got another auth key", r.ordinal)
	}
	return f.dropMarker(ctx, r)
}

// annotatedTime returns the time that an annotation of a config Secret holds, or the zero
// time.
func annotatedTime(config *corev1.Secret, name string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, config.Annotations[name])
	if err != nil {
		return time.Time{}
	}
	return t
}

// mayMint returns when a replica may have another auth key, and when it may have keyBurst
// of them again after that. Both come of what the config Secret tells, which replicas
// cannot write.
//
// What lies further ahead than it can was written by a clock that was ahead, and has been
// corrected since. A replica must not be without a key until that time comes, so it counts
// only as far as the replica may have a key now; from that on the times are right again.
func (f *fleet) mayMint(config *corev1.Secret, now time.Time) (at, full time.Time) {
	every := f.config.timing.keyEvery
	full = annotatedTime(config, annotationKeyBudget)
	if full.Before(now) {
		full = now
	} else if full.After(now.Add(keyBurst * every)) {
		full = now.Add((keyBurst - 1) * every)
	}
	full = full.Add(every)
	at = full.Add(-keyBurst * every)
	minted := annotatedTime(config, annotationKeyMinted)
	if next := minted.Add(f.config.timing.reissue); !minted.After(now) && next.After(at) {
		at = next
	}
	return at, full
}

// mintKey puts a fresh auth key into a replica's config Secret, unless it has had too
// many. device is the device that the login replaces, or "".
func (f *fleet) mintKey(ctx context.Context, r replica, device string) (minted bool, err error) {
	now := time.Now()
	at, full := f.mayMint(r.config, now)
	if at.After(now) {
		f.lookAgain(at.Sub(now))
		f.noKey[r.ordinal] = at
		return false, nil
	}
	if err := f.dropKey(ctx, r); err != nil {
		return false, err
	}
	var key tailapi.Key
	err = f.breaker.do(func(api *tailapi.Client) (err error) {
		key, err = api.CreateKey(ctx, f.tags, f.kind.name+" "+f.parent.GetName(), f.config.timing.keyLife)
		return err
	})
	if err != nil {
		return false, err
	}
	err = f.patchSecret(ctx, r.config, func(s *corev1.Secret) {
		if s.Data == nil {
			s.Data = map[string][]byte{}
		}
		s.Data[keyAuthKey] = []byte(key.Secret)
		annotate(s, annotationKeyID, key.ID)
		annotate(s, annotationKeyEnds, key.Ends.UTC().Format(time.RFC3339))
		annotate(s, annotationKeyReplaces, device)
		annotate(s, annotationKeyMinted, now.UTC().Format(time.RFC3339Nano))
		annotate(s, annotationKeyBudget, full.UTC().Format(time.RFC3339Nano))
	})
	if err != nil {
		f.revoke(ctx, key.ID) // nobody would know of it
		return false, err
	}
	if full.Sub(now) > (keyBurst-1)*f.config.timing.keyEvery {
		f.event(corev1.EventTypeWarning, "AuthKeysUsedUp", "EnsureAuthKey",
			"replica %d has had %d auth keys in a short time, and now gets one per %v at most: its log says why it does not stay logged in; if nothing explains it, replace the replica and look who had access to it",
			r.ordinal, keyBurst, f.config.timing.keyEvery)
	}
	return true, nil
}

// revoke deletes an auth key that nobody is to use any more. It is an attempt: the key
// ends by itself.
func (f *fleet) revoke(ctx context.Context, id string) {
	if err := f.breaker.do(func(api *tailapi.Client) error { return api.DeleteKey(ctx, id) }); err != nil {
		f.config.Log.InfoContext(ctx, "an auth key was not revoked, and ends by itself", f.kind.label, f.parent.GetName(), "key", id, "error", err)
	}
}

// dropKey revokes a replica's auth key and removes it from the config Secret. A key that
// was used is void already; one that was not must not stay behind.
func (f *fleet) dropKey(ctx context.Context, r replica) error {
	if id := r.config.Annotations[annotationKeyID]; id != "" && time.Now().Before(annotatedTime(r.config, annotationKeyEnds)) {
		err := f.breaker.do(func(api *tailapi.Client) error { return api.DeleteKey(ctx, id) })
		var e *tailapi.Error
		if errors.As(err, &e) && e.Kind == tailapi.KindInvalid {
			f.config.Log.InfoContext(ctx, "an auth key need not be revoked", f.kind.label, f.parent.GetName(), "key", id, "error", err)
		} else if err != nil {
			return err
		}
	}
	if r.config.Annotations[annotationKeyID] == "" && r.config.Data[keyAuthKey] == nil {
		return nil
	}
	return f.patchSecret(ctx, r.config, func(s *corev1.Secret) {
		delete(s.Data, keyAuthKey)
		for _, name := range []string{annotationKeyID, annotationKeyEnds, annotationKeyReplaces} {
			delete(s.Annotations, name)
		}
	})
}

// dropMarker tells a replica that it has another key.
func (f *fleet) dropMarker(ctx context.Context, r replica) error {
	return f.patchSecret(ctx, r.state, func(s *corev1.Secret) { delete(s.Data, tailnet.FieldReissue) })
}

// waitsForKey says that a replica has had too many auth keys, or returns "".
func (f *fleet) waitsForKey(r replica) string {
	at, ok := f.noKey[r.ordinal]
	if !ok || time.Until(at) <= f.config.timing.reissue {
		return ""
	}
	return fmt.Sprintf("has had %d auth keys in a short time, and gets the next one at %s: its log says why it does not stay logged in", keyBurst, at.UTC().Format(time.RFC3339))
}

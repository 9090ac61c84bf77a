// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"tailscale.com/ipn"
)

const (
	// writeTimeout bounds one write, its retries included.
	writeTimeout = 30 * time.Second
	// stateTimeout is how long Tailscale's code waits for one of its own. It writes with its
	// lock held, without which nobody is told who a peer is.
	stateTimeout = 2 * time.Second
)

// SecretStore keeps a node's state in a Kubernetes Secret. Its keys are those of
// Tailscale's own store, so that a device can move between the two. It needs get
// and patch on that Secret, and create in the namespace when it does not exist.
//
// What the API server does not take in time is owed: it is in memory, and goes with the
// next write, or with Restore.
type SecretStore struct {
	secrets typedcorev1.SecretInterface
	name    string
	log     *slog.Logger

	sending chan struct{} // holds one while somebody writes, so that values keep their order

	mu   sync.Mutex
	data map[string][]byte
	owed map[string]bool // keys of Tailscale's whose values the Secret does not have yet
	uid  types.UID       // of the Secret that has the data
}

var _ ipn.StateStore = (*SecretStore)(nil)

// NewSecretStore returns a store that has nothing before Load.
func NewSecretStore(client KubernetesClient, namespace, name string, log *slog.Logger) *SecretStore {
	return &SecretStore{
		secrets: client.CoreV1().Secrets(namespace), name: name, log: log,
		sending: make(chan struct{}, 1), data: map[string][]byte{}, owed: map[string]bool{},
	}
}

// Load reads the Secret, or creates it when there is none. While the API server cannot answer it
// tries again, until ctx is done, and tells why it still does.
func (s *SecretStore) Load(ctx context.Context, tell func(error)) error {
	err := s.retry(ctx, func(ctx context.Context) error {
		err := s.load(ctx)
		if err != nil && !isFinal(err) {
			s.log.WarnContext(ctx, "reading the device's state", "secret", s.name, "error", err)
			tell(fmt.Errorf("reading the device's state: %w", err))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("the device's state in Secret %s: %w", s.name, err)
	}
	return nil
}

// load reads the Secret, or creates it.
func (s *SecretStore) load(ctx context.Context) error {
	secret, err := s.secrets.Get(ctx, s.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		// A Secret of this name may be a part of a helm release that somebody deleted. Without the
		// annotation helm would delete this one, which is none of its own, at the next upgrade.
		secret, err = s.secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{
			Name: s.name, Annotations: map[string]string{"helm.sh/resource-policy": "keep"},
		}}, metav1.CreateOptions{})
	}
	if err != nil {
		return err
	}
	maps.Copy(s.data, secret.Data)
	s.uid = secret.UID
	return nil
}

// Restore puts everything back into a Secret that was deleted and made anew, or that lost
// what Tailscale's code wrote, and writes what is owed. The device would be another one
// after a restart without it.
func (s *SecretStore) Restore(ctx context.Context) error {
	secret, err := s.secrets.Get(ctx, s.name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("reading Secret %s: %w", s.name, err)
	}
	lost := s.oweLost(secret)
	if lost {
		s.log.WarnContext(ctx, "the device's state was lost, and is put back", "secret", s.name)
	}
	if !lost && len(s.owing()) == 0 {
		return nil
	}
	if err := s.write(ctx, nil); err != nil {
		return fmt.Errorf("restoring Secret %s: %w", s.name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uid = secret.UID
	return nil
}

// oweLost makes everything owed when the Secret is another one or lacks what it had, and
// reports whether so. Values are read when it is their turn to be sent: Tailscale's code may
// write others until then.
func (s *SecretStore) oweLost(secret *corev1.Secret) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost := secret.UID != s.uid
	for key := range s.data {
		_, has := secret.Data[key]
		lost = lost || !has && !reported[key] && !s.owed[key]
	}
	for key := range s.data {
		if lost && key != FieldReissue { // that may have been answered long ago
			s.owed[key] = true
		}
	}
	return lost
}

// retry calls f until it succeeds, its error is final or ctx is done, and returns
// f's last error.
func (s *SecretStore) retry(ctx context.Context, f func(context.Context) error) error {
	backoff := wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: 7, Cap: 5 * time.Second}
	for {
		err := f(ctx)
		if err == nil || isFinal(err) || pause(ctx, backoff.Step()) != nil {
			return err
		}
	}
}

// isFinal reports whether the API server has answered for good.
func isFinal(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsNotFound(err) || apierrors.IsInvalid(err) || apierrors.IsUnauthorized(err)
}

// ReadState returns what was last written, from memory.
func (s *SecretStore) ReadState(id ipn.StateKey) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok := s.data[secretKey(id)]
	if !ok {
		return nil, ipn.ErrStateNotExist
	}
	return value, nil
}

// WriteState writes one key of the Secret; nil deletes it. When the API server does not take it
// soon, it is owed, and no error: also when the Secret or the right to write it is missing,
// because both come back, and [SecretStore.Restore] must then know the newest value.
func (s *SecretStore) WriteState(id ipn.StateKey, value []byte) error {
	key := secretKey(id)
	ctx, cancel := context.WithTimeout(context.Background(), stateTimeout)
	defer cancel()
	switch err := s.write(ctx, map[string][]byte{key: value}); {
	case err == nil:
		return nil
	case apierrors.IsInvalid(err):
		return fmt.Errorf("writing state %q to Secret %s: %w", id, s.name, err)
	default:
		s.log.WarnContext(ctx, "the device's state is in memory alone for now", "key", key, "secret", s.name, "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(key, value)
	s.owed[key] = true
	return nil
}

// write writes keys of the Secret, and those that are owed, in one request; nil deletes.
func (s *SecretStore) write(ctx context.Context, data map[string][]byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	select {
	case s.sending <- struct{}{}:
		defer func() { <-s.sending }()
	case <-ctx.Done():
		return fmt.Errorf("another write is under way: %w", ctx.Err())
	}
	all := s.owing()
	maps.Copy(all, data)
	patch, err := json.Marshal(map[string]any{"data": all})
	if err != nil {
		return err
	}
	err = s.retry(ctx, func(ctx context.Context) error {
		_, err := s.secrets.Patch(ctx, s.name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "tailhelm"})
		return err
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, value := range data {
		s.keep(key, value)
	}
	for key, value := range all {
		if bytes.Equal(s.data[key], value) { // or it was written again meanwhile
			delete(s.owed, key)
		}
	}
	return nil
}

// owing returns what is owed.
func (s *SecretStore) owing() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	owing := map[string][]byte{}
	for key := range s.owed {
		owing[key] = s.data[key]
	}
	return owing
}

// keep notes a value in memory; nil deletes. s.mu is held.
func (s *SecretStore) keep(key string, value []byte) {
	if value == nil {
		delete(s.data, key)
	} else {
		s.data[key] = bytes.Clone(value)
	}
}

// String names the store in logs.
func (s *SecretStore) String() string { return "Secret " + s.name }

// secretKey returns the key of a Secret for id: Kubernetes allows letters,
// digits, '-', '_' and '.', and Tailscale's store puts '_' for the rest.
func secretKey(id ipn.StateKey) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '_'
	}, string(id))
}

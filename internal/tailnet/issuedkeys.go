// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

// FieldAuthKey is the key of a Secret with an auth key.
const FieldAuthKey = "authkey"

const (
	// issuePoll is how often a IssuedAuthKeys looks for the key that it has asked for.
	issuePoll = time.Second
	// issueWait is how long it looks before it says that there is none.
	issueWait = 30 * time.Second
)

// IssuedAuthKeys are auth keys that the operator issues, one at a time, in a Secret. A
// key that did not work is not tried again: another is asked for in the device's
// state Secret (see [FieldReissue]). It needs get on the Secret.
type IssuedAuthKeys struct {
	// Client reads the Secret.
	Client KubernetesClient
	// Namespace and Name are those of the Secret.
	Namespace, Name string
	// State is the device's state Secret.
	State *SecretStore

	given string // the last key that AuthKey returned; AuthKey has one caller at a time
}

// AuthKey returns a key that it has not returned before. When there is none, it
// asks the operator for one and waits a while.
func (k *IssuedAuthKeys) AuthKey(ctx context.Context) (string, error) {
	var key string
	err := wait.PollUntilContextTimeout(ctx, issuePoll, issueWait, true, func(ctx context.Context) (bool, error) {
		var err error
		if key, err = k.read(ctx); err != nil {
			return false, err
		}
		if key != "" && key != k.given {
			return true, nil
		}
		return false, k.ask(ctx)
	})
	switch {
	case err == nil:
		k.given = key
		return key, nil
	case wait.Interrupted(err) && ctx.Err() == nil:
		return "", errors.New("waiting for the operator to issue an auth key: the conditions of the ProxyGroup or Recorder and the operator's log say what keeps it from that")
	}
	return "", err
}

// read returns the key that the Secret holds, or "".
func (k *IssuedAuthKeys) read(ctx context.Context) (string, error) {
	secret, err := k.Client.CoreV1().Secrets(k.Namespace).Get(ctx, k.Name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("the auth key in Secret %s/%s: %w", k.Namespace, k.Name, err)
	}
	return string(secret.Data[FieldAuthKey]), nil
}

// ask asks the operator for another key than the last one. The operator takes the
// request back when it has issued one.
func (k *IssuedAuthKeys) ask(ctx context.Context) error {
	return k.State.write(ctx, map[string][]byte{FieldReissue: []byte(k.given)})
}

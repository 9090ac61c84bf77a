// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"tailscale.com/ipn"
)

var (
	quiet     = slog.New(slog.DiscardHandler)
	forbidden = apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, "operator", errors.New("RBAC"))
	away      = apierrors.NewServiceUnavailable("away")
)

// secrets returns a client of a cluster that has the Secret with data, or none
// for nil.
func secrets(data map[string][]byte) *fake.Clientset {
	if data == nil {
		return fake.NewClientset()
	}
	return fake.NewClientset(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "tailscale", Name: "operator"}, Data: data})
}

// stored returns the data of the Secret.
func stored(t *testing.T, client *fake.Clientset) map[string][]byte {
	t.Helper()
	secret, err := client.CoreV1().Secrets("tailscale").Get(t.Context(), "operator", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return secret.Data
}

// failing makes a verb fail the first n times, or always for a negative n, and
// counts.
func failing(client *fake.Clientset, verb string, n int, err error) (calls *int) {
	calls = new(int)
	client.PrependReactor(verb, "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		*calls++
		return n < 0 || *calls <= n, nil, err
	})
	return calls
}

func TestSecretStore(t *testing.T) {
	client := secrets(map[string][]byte{"_machinekey": []byte("m"), "other": []byte("o")})
	s, err := NewSecretStore(t.Context(), client, "tailscale", "operator", quiet)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.ReadState(ipn.MachineKeyStateKey); string(got) != "m" || err != nil {
		t.Errorf("machine key %q, %v", got, err)
	}
	if _, err := s.ReadState("missing"); !errors.Is(err, ipn.ErrStateNotExist) {
		t.Errorf("a missing key: %v", err)
	}
	value := []byte("p")
	if err := s.WriteState("profile-a/b:c", value); err != nil {
		t.Fatal(err)
	}
	value[0] = 'x' // the writer goes on with its slice
	if got, err := s.ReadState("profile-a/b:c"); string(got) != "p" || err != nil {
		t.Errorf("profile %q, %v", got, err)
	}
	want := map[string][]byte{"_machinekey": []byte("m"), "other": []byte("o"), "profile-a_b_c": []byte("p")}
	if diff := cmp.Diff(want, stored(t, client)); diff != "" {
		t.Errorf("Secret (-want +got):\n%s", diff)
	}
	if err := s.WriteState("other", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadState("other"); !errors.Is(err, ipn.ErrStateNotExist) {
		t.Errorf("a deleted key: %v", err)
	}
	delete(want, "other")
	if diff := cmp.Diff(want, stored(t, client)); diff != "" {
		t.Errorf("Secret after a deletion (-want +got):\n%s", diff)
	}
}

// A restart reads what was written.
func TestSecretStoreAfterRestart(t *testing.T) {
	client := secrets(nil)
	for _, want := range []string{"", "1", "2"} {
		s, err := NewSecretStore(t.Context(), client, "tailscale", "operator", quiet)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.ReadState("a")
		if string(got) != want || (want == "") != errors.Is(err, ipn.ErrStateNotExist) {
			t.Errorf("read %q, %v, want %q", got, err, want)
		}
		next := map[string]string{"": "1", "1": "2", "2": "3"}[want]
		if err := s.WriteState("a", []byte(next)); err != nil {
			t.Fatal(err)
		}
	}
}

// While the API server is away, reading goes on trying.
func TestSecretStoreWaitsForAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := secrets(map[string][]byte{"a": []byte("1")})
		calls := failing(client, "get", 20, away)
		s, err := NewSecretStore(t.Context(), client, "tailscale", "operator", quiet)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.ReadState("a"); string(got) != "1" || err != nil || *calls != 21 {
			t.Errorf("read %q, %v after %d calls", got, err, *calls)
		}
	})
}

func TestSecretStoreForbidden(t *testing.T) {
	for verb, data := range map[string]map[string][]byte{"get": {}, "create": nil} {
		client := secrets(data)
		calls := failing(client, verb, -1, forbidden)
		_, err := NewSecretStore(t.Context(), client, "tailscale", "operator", quiet)
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "Secret tailscale/operator") || *calls != 1 {
			t.Errorf("%s: %v after %d calls", verb, err, *calls)
		}
	}
}

// Writing goes on for half a minute, and no longer.
func TestWriteStateTriesAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		away time.Duration
		ok   bool
	}{
		"a short outage": {20 * time.Second, true}, "a long outage": {time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := secrets(map[string][]byte{"a": []byte("1")})
				s, err := NewSecretStore(t.Context(), client, "tailscale", "operator", quiet)
				if err != nil {
					t.Fatal(err)
				}
				back := time.Now().Add(tc.away)
				client.PrependReactor("patch", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
					return time.Now().Before(back), nil, away
				})
				err = s.WriteState("a", []byte("2"))
				if (err == nil) != tc.ok || err != nil && !apierrors.IsServiceUnavailable(err) {
					t.Errorf("error %v", err)
				}
				want := map[bool]string{true: "2", false: "1"}[tc.ok]
				if got, err := s.ReadState("a"); string(got) != want || err != nil {
					t.Errorf("read %q, %v, want %q: memory must say what the Secret does", got, err, want)
				}
			})
		})
	}
}

func TestWriteStateForbidden(t *testing.T) {
	client := secrets(map[string][]byte{})
	s, err := NewSecretStore(t.Context(), client, "tailscale", "operator", quiet)
	if err != nil {
		t.Fatal(err)
	}
	calls := failing(client, "patch", -1, forbidden)
	if err := s.WriteState("a", []byte("1")); !apierrors.IsForbidden(err) || *calls != 1 {
		t.Errorf("%v after %d calls", err, *calls)
	}
	if s.String() != "Secret operator" {
		t.Errorf("the store is called %q", s)
	}
}

func TestSecretKey(t *testing.T) {
	for id, want := range map[ipn.StateKey]string{
		"_machinekey": "_machinekey", "profile-1a2B": "profile-1a2B", "a.b": "a.b", "a/b c:d": "a_b_c_d", "é": "_",
	} {
		if got := secretKey(id); got != want {
			t.Errorf("%q is kept under %q, want %q", id, got, want)
		}
	}
}

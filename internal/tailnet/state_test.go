// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
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
	"k8s.io/apimachinery/pkg/types"
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

// load returns a store with what the Secret has, or why it cannot be read.
func load(t *testing.T, client *fake.Clientset) (*SecretStore, error) {
	t.Helper()
	s := NewSecretStore(client, "tailscale", "operator", quiet)
	return s, s.Load(t.Context(), func(error) {})
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
	s, err := load(t, client)
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
		s, err := load(t, client)
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
		s, err := load(t, client)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.ReadState("a"); string(got) != "1" || err != nil || *calls != 21 {
			t.Errorf("read %q, %v after %d calls", got, err, *calls)
		}
	})
}

// While the state cannot be read, the node starts nothing, and says why it is not ready.
func TestStartWaitsForState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := secrets(nil)
		failing(client, "get", -1, away)
		n := newTestNode(FixedAuthKey("k"), quiet)
		n.config.Store = NewSecretStore(client, "tailscale", "operator", quiet)
		ctx, cancel := context.WithCancel(t.Context())
		started := make(chan error)
		go func() { started <- n.Start(ctx) }()
		synctest.Wait()
		if err := n.Ready(ctx); err == nil || !strings.Contains(err.Error(), "reading the device's state: away") {
			t.Errorf("ready: %v", err)
		}
		cancel()
		if err := <-started; err == nil || !strings.Contains(err.Error(), "the device's state in Secret operator") {
			t.Errorf("start: %v", err)
		}
	})
}

func TestSecretStoreForbidden(t *testing.T) {
	for verb, data := range map[string]map[string][]byte{"get": {}, "create": nil} {
		client := secrets(data)
		calls := failing(client, verb, -1, forbidden)
		_, err := load(t, client)
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "Secret operator") || *calls != 1 {
			t.Errorf("%s: %v after %d calls", verb, err, *calls)
		}
	}
}

// Tailscale's code waits for a moment, and reads what it wrote. The Secret has it as soon as the
// API server takes something.
func TestWriteStateWhileAPIServerIsAway(t *testing.T) {
	for name, tc := range map[string]struct {
		away time.Duration
		// next is what is written afterwards.
		next func(*testing.T, *SecretStore) error
	}{
		"a moment": {time.Second, func(*testing.T, *SecretStore) error { return nil }},
		"until the next report": {time.Minute, func(t *testing.T, s *SecretStore) error {
			return s.write(t.Context(), map[string][]byte{FieldPodUID: []byte("u")})
		}},
		"until it is looked at":     {time.Minute, func(t *testing.T, s *SecretStore) error { return s.Restore(t.Context()) }},
		"until the next state":      {time.Minute, func(_ *testing.T, s *SecretStore) error { return s.WriteState("other", []byte("o")) }},
		"until it is written again": {time.Minute, func(_ *testing.T, s *SecretStore) error { return s.WriteState("a", []byte("2")) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := secrets(map[string][]byte{"a": []byte("1"), "gone": []byte("g")})
				s, err := load(t, client)
				if err != nil {
					t.Fatal(err)
				}
				back := time.Now().Add(tc.away)
				client.PrependReactor("patch", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
					return time.Now().Before(back), nil, away
				})
				began := time.Now()
				for key, value := range map[ipn.StateKey][]byte{"a": []byte("2"), "gone": nil} {
					if err := s.WriteState(key, value); err != nil {
						t.Fatal(err)
					}
				}
				if took := time.Since(began); took > 2*stateTimeout {
					t.Errorf("Tailscale's code has waited for %s", took)
				}
				if got, err := s.ReadState("a"); string(got) != "2" || err != nil {
					t.Errorf("read %q, %v", got, err)
				}
				if _, err := s.ReadState("gone"); !errors.Is(err, ipn.ErrStateNotExist) {
					t.Errorf("a deleted key: %v", err)
				}
				time.Sleep(time.Until(back))
				if err := tc.next(t, s); err != nil {
					t.Fatal(err)
				}
				data := stored(t, client)
				if _, has := data["gone"]; string(data["a"]) != "2" || has {
					t.Errorf("the Secret has %q", data)
				}
				if owing := s.owing(); len(owing) > 0 {
					t.Errorf("owing %q", owing)
				}
			})
		})
	}
}

// A report that the API server does not take holds up nobody.
func TestWriteStateDuringSlowReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := secrets(map[string][]byte{"a": []byte("1")})
		s, err := load(t, client)
		if err != nil {
			t.Fatal(err)
		}
		failing(client, "patch", -1, away)
		done := make(chan error)
		go func() { done <- s.write(t.Context(), map[string][]byte{FieldPodUID: []byte("u")}) }()
		synctest.Wait()
		began := time.Now()
		if err := s.WriteState("a", []byte("2")); err != nil || time.Since(began) > stateTimeout {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		if err := <-done; !apierrors.IsServiceUnavailable(err) || time.Since(began) > writeTimeout {
			t.Errorf("the report: %v after %s", err, time.Since(began))
		}
		if diff := cmp.Diff(map[string][]byte{"a": []byte("2")}, s.owing()); diff != "" {
			t.Errorf("owing (-want +got):\n%s", diff)
		}
	})
}

// What somebody took from the Secret, or with it, comes back, but for what others may take.
func TestRestore(t *testing.T) {
	for name, change := range map[string]func(*corev1.Secret){
		"emptied":   func(s *corev1.Secret) { s.Data = nil },
		"made anew": func(s *corev1.Secret) { s.Data, s.UID = nil, "another" },
	} {
		t.Run(name, func(t *testing.T) {
			client := secrets(map[string][]byte{"_machinekey": []byte("m")})
			s, err := load(t, client)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.write(t.Context(), map[string][]byte{FieldReissue: []byte("k"), FieldPodUID: []byte("u")}); err != nil {
				t.Fatal(err)
			}
			replace := func(change func(*corev1.Secret)) {
				t.Helper()
				secret, err := client.CoreV1().Secrets("tailscale").Get(t.Context(), "operator", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				change(secret)
				if _, err := client.CoreV1().Secrets("tailscale").Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			check := func(want map[string][]byte) {
				t.Helper()
				if err := s.Restore(t.Context()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, stored(t, client)); diff != "" {
					t.Errorf("Secret (-want +got):\n%s", diff)
				}
			}
			replace(func(s *corev1.Secret) { delete(s.Data, FieldReissue); delete(s.Data, FieldPodUID) })
			check(map[string][]byte{"_machinekey": []byte("m")})
			replace(change)
			check(map[string][]byte{"_machinekey": []byte("m"), FieldPodUID: []byte("u")})
		})
	}
}

// What Tailscale's code writes while the Secret is restored is newer than what is put back.
func TestWriteStateDuringRestore(t *testing.T) {
	for name, first := range map[string]func(*testing.T, *SecretStore) error{
		"that waits for a report": func(t *testing.T, s *SecretStore) error {
			return s.write(t.Context(), map[string][]byte{FieldPodUID: []byte("u")})
		},
		"that is under way": func(*testing.T, *SecretStore) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := secrets(map[string][]byte{"a": []byte("1"), "gone": []byte("g"), "same": []byte("s")})
				s, err := load(t, client)
				if err != nil {
					t.Fatal(err)
				}
				empty := []byte(`{"data":null}`)
				if _, err := client.CoreV1().Secrets("tailscale").Patch(t.Context(), "operator", types.MergePatchType, empty, metav1.PatchOptions{}); err != nil {
					t.Fatal(err)
				}
				back := time.Now().Add(10 * time.Second)
				client.PrependReactor("patch", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
					return time.Now().Before(back), nil, away
				})
				done := make(chan error, 2)
				go func() { done <- first(t, s) }()
				synctest.Wait()
				go func() { done <- s.Restore(t.Context()) }()
				synctest.Wait()
				for key, value := range map[ipn.StateKey][]byte{"a": []byte("2"), "gone": nil} {
					if err := s.WriteState(key, value); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 {
					if err := <-done; err != nil {
						t.Fatal(err)
					}
				}
				if err := s.Restore(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got, err := s.ReadState("a"); string(got) != "2" || err != nil {
					t.Errorf("read %q, %v", got, err)
				}
				data := stored(t, client)
				delete(data, FieldPodUID)
				if diff := cmp.Diff(map[string][]byte{"a": []byte("2"), "same": []byte("s")}, data); diff != "" {
					t.Errorf("Secret (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// What the Secret never had is owed, and not lost.
func TestRestoreOwed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := secrets(map[string][]byte{"a": []byte("1")})
		var log strings.Builder
		s := NewSecretStore(client, "tailscale", "operator", slog.New(slog.NewTextHandler(&log, nil)))
		if err := s.Load(t.Context(), func(error) {}); err != nil {
			t.Fatal(err)
		}
		back := time.Now().Add(time.Minute)
		client.PrependReactor("patch", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
			return time.Now().Before(back), nil, away
		})
		if err := s.WriteState("new", []byte("n")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(back))
		if err := s.Restore(t.Context()); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(log.String(), "was lost") {
			t.Errorf("log: %s", log.String())
		}
		if diff := cmp.Diff(map[string][]byte{"a": []byte("1"), "new": []byte("n")}, stored(t, client)); diff != "" {
			t.Errorf("Secret (-want +got):\n%s", diff)
		}
	})
}

// What is written while the Secret, or the right to write it, is missing is there when that is
// back: a node key that was replaced meanwhile is the one that the device has.
func TestWriteStateRefusedForNow(t *testing.T) {
	missing := apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, "operator")
	for name, refusal := range map[string]error{"forbidden": forbidden, "no Secret": missing} {
		t.Run(name, func(t *testing.T) {
			client := secrets(map[string][]byte{"key": []byte("old")})
			s, err := load(t, client)
			if err != nil {
				t.Fatal(err)
			}
			calls := failing(client, "patch", 1, refusal)
			if err := s.WriteState("key", []byte("new")); err != nil || *calls != 1 {
				t.Errorf("%v after %d calls", err, *calls)
			}
			if err := s.Restore(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string][]byte{"key": []byte("new")}, stored(t, client)); diff != "" {
				t.Errorf("Secret (-want +got):\n%s", diff)
			}
		})
	}
}

// A value that the API server can never take is an error.
func TestWriteStateInvalid(t *testing.T) {
	client := secrets(map[string][]byte{})
	s, err := load(t, client)
	if err != nil {
		t.Fatal(err)
	}
	calls := failing(client, "patch", -1, apierrors.NewInvalid(schema.GroupKind{Kind: "Secret"}, "operator", nil))
	if err := s.WriteState("a", []byte("1")); !apierrors.IsInvalid(err) || *calls != 1 {
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

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// tokenServer is an API server that mints tokens, for tests with a clock of their own.
type tokenServer struct {
	tokens *serviceAccountTokens
	// asked counts TokenRequests. The last one is the number of its token.
	asked atomic.Int64
	// broken says what to do with further ones.
	broken atomic.Pointer[http.HandlerFunc]
	// life is the lifetime that it grants, and ahead is how much its clock is ahead.
	life, ahead time.Duration
}

func newTokenServer(t *testing.T, life, ahead time.Duration) *tokenServer {
	t.Helper()
	s, l := &tokenServer{life: life, ahead: ahead}, newMemoryListener()
	api := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	go func() { _ = api.Serve(l) }()
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: "http://api", ContentConfig: rest.ContentConfig{ContentType: "application/json"},
		Dial:  func(context.Context, string, string) (net.Conn, error) { return l.dial(alice.Addr) },
		Proxy: func(*http.Request) (*url.URL, error) { return nil, nil }, //nolint:nilnil // no proxy
	})
	if err != nil {
		t.Fatal(err)
	}
	s.tokens = &serviceAccountTokens{client: client, namespace: "n", name: "s"}
	t.Cleanup(func() { _ = api.Close() })
	return s
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := s.asked.Add(1)
	var request authenticationv1.TokenRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil || *request.Spec.ExpirationSeconds != 3600 {
		http.Error(w, fmt.Sprint(request.Spec, err), http.StatusBadRequest)
		return
	}
	if broken := s.broken.Load(); broken != nil {
		(*broken)(w, r)
		return
	}
	seconds := int64(s.life.Seconds())
	request.Spec.ExpirationSeconds = &seconds
	request.Status = authenticationv1.TokenRequestStatus{Token: fmt.Sprint("token-", n), ExpirationTimestamp: metav1.NewTime(time.Now().Add(s.ahead + s.life))}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(request)
}

// breakDown makes the server answer with h from now on.
func (s *tokenServer) breakDown(h http.HandlerFunc) { s.broken.Store(&h) }

// hang never answers.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// forbid answers as RBAC does.
func forbid(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }

// mustGet checks that Token returns want without waiting: the clock of these tests stands
// still unless somebody waits for it.
func (s *tokenServer) mustGet(t *testing.T, want string) {
	t.Helper()
	start := time.Now()
	token, err := s.tokens.Token()
	if err != nil || token.AccessToken != want || time.Since(start) != 0 {
		t.Fatalf("token %v, error %v, after %v, want %s", token, err, time.Since(start), want)
	}
}

// While a token lives nobody waits for the next one, whatever becomes of the requests for
// that: they are one at a time, and few.
func TestTokenIsUsedToItsEnd(t *testing.T) {
	const life = 10 * time.Minute
	for name, broken := range map[string]http.HandlerFunc{"hangs": hang, "refuses": forbid} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTokenServer(t, life, 0)
				s.mustGet(t, "token-1")
				s.breakDown(broken)
				for range 3 {
					time.Sleep(life / 4)
					s.mustGet(t, "token-1")
				}
				if n := s.asked.Load(); n != 1 {
					t.Fatalf("%d tokens were asked for before one was due", n)
				}
				time.Sleep(life/4 - time.Millisecond) // some of them within the last fifth
				for range 100 {
					s.mustGet(t, "token-1")
				}
				synctest.Wait()
				if n := s.asked.Load(); n != 2 {
					t.Errorf("100 requests ask for a token %d times, want once", n-1)
				}
				time.Sleep(time.Millisecond)
				if _, err := s.tokens.Token(); err == nil {
					t.Error("a token is used beyond its end")
				}
			})
		})
	}
}

// A renewal that failed is tried again before the token ends, and one that works is used
// by the next request.
func TestTokenIsRenewed(t *testing.T) {
	const life = 10 * time.Minute
	synctest.Test(t, func(t *testing.T) {
		s := newTokenServer(t, life, 0)
		s.mustGet(t, "token-1")
		time.Sleep(life * 4 / 5)
		s.breakDown(hang)
		s.mustGet(t, "token-1")
		time.Sleep(renewInterval - time.Millisecond)
		s.mustGet(t, "token-1")
		if n := s.asked.Load(); n != 2 {
			t.Errorf("after a failure a token was asked for %d times, too early", n-1)
		}
		s.broken.Store(nil)
		time.Sleep(time.Millisecond)
		s.mustGet(t, "token-1")
		synctest.Wait()
		s.mustGet(t, "token-3")
	})
}

// Requests that need a token because there is none wait for one TokenRequest, together.
func TestTokenIsAskedForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTokenServer(t, time.Hour, 0)
		s.breakDown(hang)
		start, answers := time.Now(), make(chan error, 10)
		for range cap(answers) {
			go func() {
				_, err := s.tokens.Token()
				answers <- err
			}()
		}
		for range cap(answers) {
			if err := <-answers; err == nil {
				t.Error("there is a token")
			}
		}
		if waited := time.Since(start); waited != tokenTimeout || s.asked.Load() != 1 {
			t.Errorf("10 requests waited %v for %d TokenRequests, want %v for one", waited, s.asked.Load(), tokenTimeout)
		}
	})
}

// What the clocks of proxy and API server say does not matter.
func TestTokenOfAnotherClock(t *testing.T) {
	for _, ahead := range []time.Duration{-2 * time.Hour, 2 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			s := newTokenServer(t, time.Hour, ahead)
			s.mustGet(t, "token-1")
			time.Sleep(47 * time.Minute)
			s.mustGet(t, "token-1")
			synctest.Wait()
			if n := s.asked.Load(); n != 1 {
				t.Errorf("%v ahead: %d tokens were asked for, want 1", ahead, n)
			}
			time.Sleep(time.Minute)
			s.mustGet(t, "token-1")
			synctest.Wait()
			s.mustGet(t, "token-2")
		})
	}
}

// A token that the API server did not accept is replaced at once, and used until then, whatever
// becomes of the request for the next one; one that came later is none of that. Further
// answers 401 ask for no more tokens for a while.
func TestTokenIsReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTokenServer(t, time.Hour, 0)
		before := time.Now()
		time.Sleep(time.Second)
		s.mustGet(t, "token-1")
		s.tokens.ResetTokenOlderThan(before)
		synctest.Wait()
		if n := s.asked.Load(); n != 1 {
			t.Fatalf("a token is replaced that came after the refusal: %d were asked for", n)
		}
		s.breakDown(hang)
		for range 3 {
			time.Sleep(time.Second)
			s.tokens.ResetTokenOlderThan(time.Now())
			s.mustGet(t, "token-1")
		}
		time.Sleep(renewInterval - 2*time.Second - time.Millisecond)
		s.tokens.ResetTokenOlderThan(time.Now())
		s.mustGet(t, "token-1")
		synctest.Wait()
		if n := s.asked.Load(); n != 2 {
			t.Fatalf("4 refusals ask for a token %d times, want once", n-1)
		}
		s.broken.Store(nil)
		time.Sleep(time.Millisecond)
		s.tokens.ResetTokenOlderThan(time.Now())
		synctest.Wait()
		s.mustGet(t, "token-3")
	})
}

// An answer without what matters is an error, and no token that never ends or is empty.
func TestTokenIsMissing(t *testing.T) {
	for name, answer := range map[string]authenticationv1.TokenRequest{
		"no token":    {Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: new(int64(3600))}},
		"no lifetime": {Status: authenticationv1.TokenRequestStatus{Token: "t"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTokenServer(t, time.Hour, 0)
				s.breakDown(func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Content-Type", "application/json")
					_ = json.NewEncoder(w).Encode(answer)
				})
				token, err := s.tokens.Token()
				checkError(t, err, "without a token or without its lifetime")
				if token != nil {
					t.Errorf("token %v", token)
				}
			})
		})
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// tokenRequests is a client whose TokenRequests are answered by answer.
func tokenRequests(answer func(clienttesting.CreateAction) (*authenticationv1.TokenRequest, error)) *fake.Clientset {
	client := fake.NewClientset()
	client.PrependReactor("create", "serviceaccounts", func(action clienttesting.Action) (bool, runtime.Object, error) {
		create, ok := action.(clienttesting.CreateAction)
		if !ok || action.GetSubresource() != "token" {
			return false, nil, nil
		}
		r, err := answer(create)
		return true, r, err
	})
	return client
}

// tokenAnswer is how an API server answers r: with the lifetime that was asked for.
func tokenAnswer(r *authenticationv1.TokenRequest, token string) *authenticationv1.TokenRequest {
	r = r.DeepCopy()
	r.Status = authenticationv1.TokenRequestStatus{Token: token, ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Duration(*r.Spec.ExpirationSeconds) * time.Second))}
	return r
}

// The credentials for impersonating are a ServiceAccount's, and none of the
// operator's own are left.
func TestImpersonatorConfig(t *testing.T) {
	var asked []string
	client := tokenRequests(func(a clienttesting.CreateAction) (*authenticationv1.TokenRequest, error) {
		named, _ := a.(clienttesting.CreateActionImpl)
		asked = append(asked, a.GetNamespace()+"/"+named.Name)
		return tokenAnswer(a.GetObject().(*authenticationv1.TokenRequest), "token-of-the-impersonator"), nil
	})
	api := newAPIServer(t, nil)
	own := api.config()
	own.BearerToken, own.Username, own.Password = "token-of-the-operator", "", ""
	r := start(t, api, options{config: ImpersonatorConfig(own, client, "tailscale", "impersonator")})
	for range 3 {
		if res, _ := r.get(t, alice.Addr, "/api", nil); res.StatusCode != http.StatusOK {
			t.Fatalf("status %s", res.Status)
		}
	}
	for _, got := range api.all() {
		if diff := cmp.Diff([]string{"Bearer token-of-the-impersonator"}, got.Header["Authorization"]); diff != "" {
			t.Errorf("Authorization (-want +got):\n%s", diff)
		}
	}
	if diff := cmp.Diff([]string{"tailscale/impersonator"}, asked); diff != "" {
		t.Errorf("tokens were asked for, of (-want +got):\n%s", diff)
	}
}

// A token that the API server does not accept any more is replaced.
func TestImpersonatorTokenIsReplaced(t *testing.T) {
	var minted, revoked atomic.Int32
	client := tokenRequests(func(a clienttesting.CreateAction) (*authenticationv1.TokenRequest, error) {
		return tokenAnswer(a.GetObject().(*authenticationv1.TokenRequest), fmt.Sprint("token-", minted.Add(1))), nil
	})
	api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == fmt.Sprint("Bearer token-", revoked.Load()) {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	r := start(t, api, options{config: ImpersonatorConfig(api.config(), client, "tailscale", "impersonator")})
	for _, want := range []int{http.StatusOK, http.StatusUnauthorized} {
		if res, _ := r.get(t, alice.Addr, "/api", nil); res.StatusCode != want {
			t.Errorf("status %s, want %d", res.Status, want)
		}
		revoked.Store(1)
	}
	eventually(t, "the next token is used", func() bool {
		res, _ := r.get(t, alice.Addr, "/api", nil)
		return res.StatusCode == http.StatusOK
	})
}

func TestImpersonatorTokenFails(t *testing.T) {
	client := tokenRequests(func(clienttesting.CreateAction) (*authenticationv1.TokenRequest, error) {
		return nil, apierrors.NewForbidden(schema.GroupResource{Resource: "serviceaccounts/token"}, "impersonator", errors.New("RBAC"))
	})
	api := newAPIServer(t, nil)
	r := start(t, api, options{config: ImpersonatorConfig(api.config(), client, "tailscale", "impersonator")})
	res, body := r.get(t, alice.Addr, "/api", nil)
	r.checkRefusal(t, res, body, http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable, reasonCredentials, "Its log says why")
	api.mustNotReach(t)
	if line := r.logs.lines(t, "request", 1)[0]; !strings.Contains(line["error"].(string), "ServiceAccount tailscale/impersonator") {
		t.Errorf("logged as %v", line)
	}
}

func TestCheckReachable(t *testing.T) {
	for name, tc := range map[string]struct {
		mode Mode
		code int
		want string // "" is reachable
	}{
		"auth":                           {ModeAuth, 200, ""},
		"noauth":                         {ModeNoAuth, 200, ""},
		"auth, credentials not accepted": {ModeAuth, 401, "does not accept the credentials with which the proxy impersonates: 401"},
		"noauth, anonymous refused":      {ModeNoAuth, 401, ""},
		"auth, forbidden":                {ModeAuth, 403, ""},
		"server error":                   {ModeAuth, 500, "answers 500 Internal Server Error"},
		"noauth, server error":           {ModeNoAuth, 503, "answers 503 Service Unavailable"},
	} {
		t.Run(name, func(t *testing.T) {
			api := newAPIServer(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(tc.code) })
			config := api.config()
			config.Host += "/k8s/c-1"
			up, err := newUpstream(Config{Mode: tc.mode, Upstream: config})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(up.close)
			checkError(t, up.check(t.Context()), tc.want)
			got := api.only(t)
			want := map[Mode][]string{ModeAuth: {"Bearer " + ourToken}}[tc.mode]
			if diff := cmp.Diff(want, got.Header["Authorization"]); diff != "" {
				t.Errorf("Authorization (-want +got):\n%s", diff)
			}
			if got.URI != "/k8s/c-1/version" {
				t.Errorf("asked for %s", got.URI)
			}
		})
	}
}

func TestCheckReachableDown(t *testing.T) {
	api := newAPIServer(t, nil)
	api.Close()
	up, err := newUpstream(Config{Mode: ModeAuth, Upstream: api.config()})
	if err != nil {
		t.Fatal(err)
	}
	checkError(t, up.check(t.Context()), "the API server at "+api.URL)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	checkError(t, up.check(ctx), "cannot be reached")
}

func TestCheckImpersonator(t *testing.T) {
	rule := func(verbs, resources string) authorizationv1.ResourceRule {
		return authorizationv1.ResourceRule{Verbs: strings.Split(verbs, ","), APIGroups: []string{""}, Resources: strings.Split(resources, ",")}
	}
	for name, tc := range map[string]struct {
		rules      []authorizationv1.ResourceRule
		incomplete bool
		all        bool // another authorizer allows everything
		want       string
	}{
		"may impersonate":           {rules: []authorizationv1.ResourceRule{rule("create", "selfsubjectreviews"), rule("impersonate", "users,groups")}},
		"all verbs on users":        {rules: []authorizationv1.ResourceRule{rule("*", "users,groups")}},
		"may not":                   {rules: []authorizationv1.ResourceRule{rule("create", "selfsubjectreviews")}, want: "may not impersonate users"},
		"groups only":               {rules: []authorizationv1.ResourceRule{rule("impersonate", "groups")}, want: "may not impersonate users"},
		"nothing":                   {want: "may not impersonate users"},
		"who knows":                 {incomplete: true},
		"everything":                {rules: []authorizationv1.ResourceRule{rule("impersonate", "users,groups"), rule("*", "*")}, want: "may do everything"},
		"everything, and who knows": {rules: []authorizationv1.ResourceRule{rule("*", "*")}, incomplete: true, want: "may do everything"},
		"everything, by a webhook":  {rules: []authorizationv1.ResourceRule{rule("impersonate", "users,groups")}, incomplete: true, all: true, want: "may do everything"},
		"everything of another API": {rules: []authorizationv1.ResourceRule{
			rule("impersonate", "users,groups"), {Verbs: []string{"*"}, APIGroups: []string{"example.com"}, Resources: []string{"*"}},
		}},
		"users of another API": {
			rules: []authorizationv1.ResourceRule{{Verbs: []string{"impersonate"}, APIGroups: []string{"example.com"}, Resources: []string{"users"}}},
			want:  "may not impersonate users",
		},
		"impersonation of all kinds": {rules: []authorizationv1.ResourceRule{rule("impersonate", "*")}},
	} {
		t.Run(name, func(t *testing.T) {
			api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				switch r.URL.Path {
				case "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews":
					_ = json.NewEncoder(w).Encode(authorizationv1.SelfSubjectRulesReview{
						TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectRulesReview"},
						Status:   authorizationv1.SubjectRulesReviewStatus{ResourceRules: tc.rules, Incomplete: tc.incomplete},
					})
				case "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
					var review authorizationv1.SelfSubjectAccessReview
					_ = json.NewDecoder(r.Body).Decode(&review)
					asked := review.Spec.ResourceAttributes
					review.Status.Allowed = tc.all && asked != nil && *asked == authorizationv1.ResourceAttributes{Verb: "*", Group: "*", Resource: "*"}
					_ = json.NewEncoder(w).Encode(review)
				default:
					http.NotFound(w, r)
				}
			})
			config := api.config()
			config.ContentType = runtime.ContentTypeJSON
			checkError(t, CheckImpersonator(t.Context(), config), tc.want)
		})
	}
}

func TestCheckImpersonatorFails(t *testing.T) {
	for review, want := range map[string]string{
		"selfsubjectrulesreviews":  "asking the API server what the proxy may do",
		"selfsubjectaccessreviews": "asking the API server whether the proxy may do everything",
	} {
		t.Run(review, func(t *testing.T) {
			api := newAPIServer(t, func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, review) {
					w.WriteHeader(http.StatusUnauthorized)
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, "{}")
			})
			checkError(t, CheckImpersonator(t.Context(), api.config()), want)
		})
	}
}

// checkError checks that err is nil for "", and otherwise says want.
func checkError(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("error %v, want %q", err, want)
	}
}

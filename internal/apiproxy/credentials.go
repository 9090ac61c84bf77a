// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedauthorizationv1 "k8s.io/client-go/kubernetes/typed/authorization/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
	"k8s.io/klog/v2"
)

const (
	// tokenLifetime is what is asked for. The API server may shorten it.
	tokenLifetime = time.Hour
	tokenTimeout  = 10 * time.Second
	// renewInterval is how long after a renewal was begun the next one may be, if it
	// brought no token, or if an answer 401 asks for it.
	renewInterval = 30 * time.Second
)

// ErrCredentials marks errors of getting the credentials with which the proxy
// impersonates callers.
var ErrCredentials = errors.New("no credentials to impersonate with")

// TokenClient is what tokens are minted with: as much of a client as that takes.
type TokenClient interface {
	CoreV1() typedcorev1.CoreV1Interface
}

// ImpersonatorConfig returns a configuration for the API server of config whose
// requests carry short-lived tokens of a ServiceAccount, obtained through
// TokenRequest with the rights of client. Nothing of config's own credentials is
// in it.
func ImpersonatorConfig(config *rest.Config, client TokenClient, namespace, serviceAccount string) *rest.Config {
	c := rest.AnonymousClientConfig(config)
	c.Wrap(transport.ResettableTokenSourceWrapTransport(&serviceAccountTokens{client: client, namespace: namespace, name: serviceAccount}))
	return c
}

// serviceAccountTokens mints tokens of a ServiceAccount, and keeps the last one to its
// end. It renews it from four fifths of its life on, in the background: no request waits
// for a TokenRequest that hangs while there is a token that the API server accepts.
// (client-go's own cache lets each request wait for one of its own, in turn.)
type serviceAccountTokens struct {
	client          TokenClient
	namespace, name string
	minting         singleflight.Group

	mu   sync.Mutex // guards what follows; not held while anybody waits
	last *oauth2.Token
	// minted is when last came, renew when to ask for the next one, and reset when an
	// answer 401 may ask for one.
	minted, renew, reset time.Time
}

// Token returns the last token, or a new one if that has ended. All who wait for a new
// one share it, or the error, which wraps [ErrCredentials].
func (s *serviceAccountTokens) Token() (*oauth2.Token, error) {
	now := time.Now()
	s.mu.Lock()
	last := s.last
	if last != nil && !now.Before(last.Expiry) {
		last = nil
	}
	due := last != nil && !now.Before(s.renew)
	if due {
		s.renew = now.Add(renewInterval)
	}
	s.mu.Unlock()
	if due {
		s.minting.DoChan("", s.renewal)
	}
	if last != nil {
		return last, nil
	}
	token, err, _ := s.minting.Do("", func() (any, error) { return s.mint() })
	if err != nil {
		return nil, err
	}
	return token.(*oauth2.Token), nil //nolint:forcetypeassert // of mint
}

// renewal is mint for when nobody waits: it logs its error.
func (s *serviceAccountTokens) renewal() (any, error) {
	token, err := s.mint()
	if err != nil {
		klog.Background().Error(err, "Renewing the token with which the proxy impersonates; the last one is used to its end", "retryAfter", renewInterval)
	}
	return token, err
}

// mint asks for a token and keeps it.
func (s *serviceAccountTokens) mint() (*oauth2.Token, error) {
	ctx, cancel := context.WithTimeout(context.Background(), tokenTimeout)
	defer cancel()
	seconds := int64(tokenLifetime.Seconds())
	asked := time.Now()
	r, err := s.client.CoreV1().ServiceAccounts(s.namespace).CreateToken(ctx, s.name,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err == nil && (r.Status.Token == "" || r.Spec.ExpirationSeconds == nil) {
		err = errors.New("the API server answers without a token or without its lifetime")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: a token of ServiceAccount %s/%s: %w", ErrCredentials, s.namespace, s.name, err)
	}
	// The answer has the lifetime that was granted. Its ExpirationTimestamp is a time of the
	// API server's clock, and this one may be another.
	life := time.Duration(*r.Spec.ExpirationSeconds) * time.Second
	token := &oauth2.Token{AccessToken: r.Status.Token, Expiry: asked.Add(life)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.minted, s.renew = token, time.Now(), asked.Add(life*4/5)
	return token, nil
}

// ResetTokenOlderThan begins the renewal of a token that came before t, because the API
// server is said not to have accepted it, at most once per renewInterval. The token is used
// until the next one is there: any caller can cause an answer 401, from a pod of its own
// through the proxy subresource for example, and must not make everybody wait for a token,
// or go without where none is to be had. If the API server has really revoked it, it refuses
// it until then.
func (s *serviceAccountTokens) ResetTokenOlderThan(t time.Time) {
	now := time.Now()
	s.mu.Lock()
	due := s.last != nil && s.minted.Before(t) && !now.Before(s.reset)
	if due {
		s.reset = now.Add(renewInterval)
	}
	s.mu.Unlock()
	if due {
		s.minting.DoChan("", s.renewal)
	}
}

// ErrAllPowerful is what CheckImpersonator returns for credentials that may do
// everything.
var ErrAllPowerful = errors.New("the credentials with which the proxy impersonates may do everything: give it those of a ServiceAccount that may only impersonate users and groups")

// CheckImpersonator returns what is wrong with the credentials of config for
// impersonating callers: they may not impersonate, or they may do everything. The
// second would turn any defect of the proxy into somebody's cluster.
//
// It asks twice. The API server's list of rules lacks what a webhook allows. The access
// review asks every authorizer, but only whether everything is allowed in all namespaces; the
// list shows also what is allowed in one, and whether impersonation is.
func CheckImpersonator(ctx context.Context, config *rest.Config) error {
	client, err := typedauthorizationv1.NewForConfig(config)
	if err != nil {
		return err
	}
	review, err := client.SelfSubjectRulesReviews().Create(ctx,
		&authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: metav1.NamespaceDefault}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("asking the API server what the proxy may do: %w", err)
	}
	mayImpersonate := false
	for _, rule := range review.Status.ResourceRules {
		if !covers(rule.APIGroups, "") {
			continue // of some other API, whatever it allows there
		}
		if slices.Contains(rule.Verbs, "*") && slices.Contains(rule.Resources, "*") {
			return ErrAllPowerful
		}
		if covers(rule.Verbs, "impersonate") && covers(rule.Resources, "users") {
			mayImpersonate = true
		}
	}
	all, err := client.SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "*", Group: "*", Resource: "*"},
	}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("asking the API server whether the proxy may do everything: %w", err)
	}
	if all.Status.Allowed {
		return ErrAllPowerful
	}
	if !mayImpersonate && !review.Status.Incomplete {
		return errors.New("the credentials with which the proxy impersonates may not impersonate users: bind their ServiceAccount to a ClusterRole with the verb impersonate on users and groups")
	}
	return nil
}

// covers reports whether the names in a rule of RBAC stand for name.
func covers(names []string, name string) bool {
	return slices.Contains(names, name) || slices.Contains(names, "*")
}

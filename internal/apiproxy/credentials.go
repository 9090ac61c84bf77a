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
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedauthorizationv1 "k8s.io/client-go/kubernetes/typed/authorization/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport"
)

const (
	// tokenLifetime is what is asked for. The API server may shorten it.
	tokenLifetime = time.Hour
	tokenTimeout  = 10 * time.Second
	resetInterval = 30 * time.Second
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
	c.Wrap(transport.ResettableTokenSourceWrapTransport(&patientTokens{
		ResettableTokenSource: transport.NewCachedTokenSource(&serviceAccountTokens{client: client, namespace: namespace, name: serviceAccount}),
	}))
	return c
}

// patientTokens drops a token that the API server did not accept at most once per
// resetInterval: any caller can cause an answer 401, from a pod of its own through
// the proxy subresource for example, and must not make everybody wait for tokens.
type patientTokens struct {
	transport.ResettableTokenSource
	mu   sync.Mutex
	next time.Time // of a reset
}

// ResetTokenOlderThan drops the token if it is older than t.
func (p *patientTokens) ResetTokenOlderThan(t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); !now.Before(p.next) {
		p.next = now.Add(resetInterval)
		p.ResettableTokenSource.ResetTokenOlderThan(t)
	}
}

// serviceAccountTokens mints tokens of a ServiceAccount.
type serviceAccountTokens struct {
	client          TokenClient
	namespace, name string
}

// Token returns a new token. Its stated expiry is at four fifths of its life:
// client-go's cache asks for the next one then, and goes on with the old one if
// that fails.
func (s *serviceAccountTokens) Token() (*oauth2.Token, error) {
	ctx, cancel := context.WithTimeout(context.Background(), tokenTimeout)
	defer cancel()
	seconds := int64(tokenLifetime.Seconds())
	now := time.Now()
	r, err := s.client.CoreV1().ServiceAccounts(s.namespace).CreateToken(ctx, s.name,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("%w: a token of ServiceAccount %s/%s: %w", ErrCredentials, s.namespace, s.name, err)
	}
	return &oauth2.Token{AccessToken: r.Status.Token, Expiry: now.Add(r.Status.ExpirationTimestamp.Sub(now) * 4 / 5)}, nil
}

// ErrAllPowerful is what CheckImpersonator returns for credentials that may do
// everything.
var ErrAllPowerful = errors.New("the credentials with which the proxy impersonates may do everything: give it those of a ServiceAccount that may only impersonate users and groups")

// CheckImpersonator returns what is wrong with the credentials of config for
// impersonating callers: they may not impersonate, or they may do everything. The
// second would turn any defect of the proxy into somebody's cluster.
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
		if slices.Contains(rule.Verbs, "*") && slices.Contains(rule.Resources, "*") {
			return ErrAllPowerful
		}
		if covers(rule.Verbs, "impersonate") && covers(rule.Resources, "users") {
			mayImpersonate = true
		}
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

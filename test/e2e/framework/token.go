// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	"encoding/json"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

// Token is a token of a ServiceAccount, which lives for an hour.
func (s *Suite) Token(ctx context.Context, namespace, account string) (string, error) {
	request, err := s.Kube.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("token of ServiceAccount %s/%s: %w", namespace, account, err)
	}
	return request.Status.Token, nil
}

// FederatedClient makes a client of the Tailscale API that the bearers of a
// ServiceAccount's tokens are, as the cluster's own keys prove it. It returns the
// client's ID and the audience that tokens must have.
func (s *Suite) FederatedClient(ctx context.Context, namespace, account string) (id, audience string, err error) {
	raw, err := s.Kube.CoreV1().RESTClient().Get().AbsPath("/.well-known/openid-configuration").DoRaw(ctx)
	if err != nil {
		return "", "", err
	}
	var discovery struct{ Issuer string }
	if err := json.Unmarshal(raw, &discovery); err != nil {
		return "", "", err
	}
	id, err = s.Tailnet.FederatedClient(tailnet.Federation{
		Issuer: discovery.Issuer, Subject: "system:serviceaccount:" + namespace + ":" + account, Tags: []string{OperatorTag},
		JWKS: func(ctx context.Context) ([]byte, error) {
			return s.Kube.CoreV1().RESTClient().Get().AbsPath("/openid/v1/jwks").DoRaw(ctx)
		},
	})
	return id, "api.tailscale.com/" + id, err
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
)

// validate checks what the API server cannot: what else is in the cluster. It sets
// invalid or noClass, in a sentence that says what to do.
func (p *pass) validate(ctx context.Context) error {
	if p.group.Mode() == v1alpha1.APIServerProxyModeAuth {
		account := &metav1.PartialObjectMetadata{}
		account.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ServiceAccount"))
		err := p.live.Get(ctx, types.NamespacedName{Namespace: p.config.Namespace, Name: p.config.Impersonator}, account)
		if apierrors.IsNotFound(err) {
			p.invalid = fmt.Sprintf("spec.kubeAPIServer.mode is auth, but there is no ServiceAccount %s/%s to impersonate callers with: "+
				"set the chart's value apiServerProxyConfig.allowImpersonation to \"true\", or the mode to noauth", p.config.Namespace, p.config.Impersonator)
			return nil
		} else if err != nil {
			return fmt.Errorf("reading ServiceAccount %s: %w", p.config.Impersonator, err)
		}
	}
	return p.readClass(ctx)
}

// readClass reads the group's ProxyClass.
func (p *pass) readClass(ctx context.Context) error {
	name := cmp.Or(p.group.Spec.ProxyClass, p.config.DefaultClass)
	if name == "" {
		return nil
	}
	class := &v1alpha1.ProxyClass{}
	err := p.live.Get(ctx, types.NamespacedName{Name: name}, class)
	switch {
	case apierrors.IsNotFound(err) && p.group.Spec.ProxyClass == "":
		p.noClass = fmt.Sprintf("the default ProxyClass %q does not exist: create it, or change the chart's value proxyConfig.defaultProxyClass", name)
	case apierrors.IsNotFound(err):
		p.noClass = fmt.Sprintf("the ProxyClass %q of spec.proxyClass does not exist: create it, or name another", name)
	case err != nil:
		return fmt.Errorf("reading ProxyClass %s: %w", name, err)
	default:
		if problems := classProblems(&class.Spec); len(problems) > 0 {
			p.noClass = fmt.Sprintf("the ProxyClass %q is invalid: %s", name, strings.Join(problems, "; "))
		}
		p.class = &class.Spec
	}
	return nil
}

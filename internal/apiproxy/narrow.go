// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// narrow returns the groups to impersonate for a caller: all of its own, or, when the client
// impersonates the caller itself (kubectl --as, --as-group) and that is allowed, those of them
// that it asks for. That way a person with many rights can work with few of them. Whatever
// would make the caller anybody else, or give it a group that it does not have, is refused.
func narrow(h http.Header, caller identity.Identity, allowed bool) ([]string, *refusal) {
	asked := false
	for name := range h {
		switch {
		case !isImpersonation(name):
			continue
		case !allowed:
			return nil, refuseImpersonation(caller, `Drop --as and --as-group, and "as" from the kubeconfig. An administrator can let you work with fewer groups (apiServerProxyConfig.impersonation.fewerGroups of the chart).`)
		case name != authenticationv1.ImpersonateUserHeader && name != authenticationv1.ImpersonateGroupHeader:
			return nil, refuseImpersonation(caller, fmt.Sprintf("The header %s is not supported: drop --as-uid, and \"as-uid\" and \"as-user-extra\" from the kubeconfig.", name))
		}
		asked = true
	}
	if !asked {
		return caller.Groups, nil
	}
	if user := h[authenticationv1.ImpersonateUserHeader]; !slices.Equal(user, []string{caller.User}) {
		return nil, refuseImpersonation(caller, "You can only be yourself: drop --as, and \"as\" from the kubeconfig, or give them this name.")
	}
	wanted := h[authenticationv1.ImpersonateGroupHeader]
	for _, group := range wanted {
		if !slices.Contains(caller.Groups, group) {
			return nil, refuseImpersonation(caller, fmt.Sprintf("You do not have the group %q; --as-group takes those that you have: %s.", clip(group), orNone(caller.Groups)))
		}
	}
	// The caller's own list: one that the client wrote can have each a thousand times.
	return slices.DeleteFunc(slices.Clone(caller.Groups), func(group string) bool { return !slices.Contains(wanted, group) }), nil
}

// refuseImpersonation says what a client can ask for, and what was wrong.
func refuseImpersonation(caller identity.Identity, wrong string) *refusal {
	return refuseForbidden(reasonImpersonation, fmt.Sprintf("This proxy impersonates you, %q, and nobody else. %s", caller.User, wrong), nil)
}

// orNone lists names for a sentence.
func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

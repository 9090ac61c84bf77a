// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubeconfig

import (
	"errors"
	"fmt"
	"strings"

	"tailscale.com/ipn/ipnstate"
)

// Suffix returns the tailnet's MagicDNS suffix, which completes short names. The error says
// why tailscaled does not have it.
func Suffix(status *ipnstate.Status) (string, error) {
	if status.CurrentTailnet == nil || status.CurrentTailnet.MagicDNSSuffix == "" {
		return "", fmt.Errorf("tailscaled does not tell the tailnet's domain, its state is %s: log in (tailscale up), or give the full name", status.BackendState)
	}
	return status.CurrentTailnet.MagicDNSSuffix, nil
}

// Self returns who this device's requests come from to a proxy in mode auth: the login of
// its user, or, for a tagged device, its full name.
func Self(status *ipnstate.Status) (string, error) {
	if status.Self == nil {
		return "", errors.New("tailscaled does not tell who this device is: log in (tailscale up)")
	}
	if status.Self.Tags != nil && status.Self.Tags.Len() > 0 {
		return strings.TrimSuffix(status.Self.DNSName, "."), nil
	}
	if user := status.User[status.Self.UserID]; user.LoginName != "" {
		return user.LoginName, nil
	}
	return "", fmt.Errorf("tailscaled does not tell whose device this is, its state is %s: log in (tailscale up)", status.BackendState)
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubeconfig

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Target is where a proxy answers.
type Target struct {
	// Scheme is "https" or "http".
	Scheme string
	// Host is the proxy's name, in lower case and without a dot at its end. It may be the
	// first label alone: see [Target.Complete].
	Host string
}

// ParseTarget reads what a person calls a proxy: its full name, the first label of that, or
// its address. plain chooses http for a name. The error says what is allowed.
func ParseTarget(name string, plain bool) (Target, error) {
	t := Target{Scheme: "https", Host: name}
	if plain {
		t.Scheme = "http"
	}
	if strings.Contains(name, "://") {
		var err error
		if t, err = parseAddress(name); err != nil {
			return Target{}, err
		}
		if plain && t.Scheme != "http" {
			return Target{}, errors.New("an https address and --http contradict each other: leave out one")
		}
	}
	t.Host = strings.ToLower(strings.TrimSuffix(t.Host, "."))
	label := t.Host[strings.LastIndex(t.Host, ".")+1:]
	if len(validation.IsDNS1123Subdomain(t.Host)) > 0 || strings.Trim(label, "0123456789") == "" {
		return Target{}, errors.New("give the proxy's name on the tailnet, for example cluster or cluster.tail1234.ts.net, or its address, https://cluster.tail1234.ts.net")
	}
	return t, nil
}

// parseAddress reads an address that consists of a scheme and a host.
func parseAddress(address string) (Target, error) {
	u, err := url.Parse(address)
	if err != nil {
		return Target{}, err
	}
	standard := map[string]string{"https": "443", "http": "80"}[u.Scheme]
	switch {
	case standard == "":
		return Target{}, errors.New("give an https or http address")
	case u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return Target{}, errors.New("give an address without user, path or query")
	case u.Port() != "" && u.Port() != standard:
		return Target{}, fmt.Errorf("leave out the port: proxies answer on %s for %s", standard, u.Scheme)
	}
	return Target{Scheme: u.Scheme, Host: u.Hostname()}, nil
}

// Short reports whether the host is the first label of a name alone.
func (t Target) Short() bool { return !strings.Contains(t.Host, ".") }

// Complete returns t with the full name: a short one is in the tailnet with the given
// MagicDNS suffix.
func (t Target) Complete(suffix string) Target {
	if t.Short() {
		t.Host += "." + strings.ToLower(strings.Trim(suffix, "."))
	}
	return t
}

// URL is the proxy's address, as a kubeconfig has it.
func (t Target) URL() string { return t.Scheme + "://" + t.Host }

// Port is the port of the scheme.
func (t Target) Port() string {
	if t.Scheme == "http" {
		return "80"
	}
	return "443"
}

// Context returns the name of a context in config for the proxy: the current one if it is
// for it, otherwise the first by name, or "" if there is none.
func (t Target) Context(config *clientcmdapi.Config) string {
	var found []string
	for name, context := range config.Contexts {
		if cluster := config.Clusters[context.Cluster]; cluster != nil && t.is(cluster.Server) {
			found = append(found, name)
		}
	}
	if len(found) == 0 {
		return ""
	}
	if slices.Contains(found, config.CurrentContext) {
		return config.CurrentContext
	}
	return slices.Min(found)
}

// is reports whether server, of a kubeconfig, is the proxy.
func (t Target) is(server string) bool {
	other, err := ParseTarget(server, false)
	return err == nil && strings.Contains(server, "://") && other == t
}

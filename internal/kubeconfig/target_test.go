// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubeconfig_test

import (
	"strings"
	"testing"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
	"tailscale.com/types/views"

	"github.com/tailhelm/tailhelm/internal/kubeconfig"
)

func TestParseTarget(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		plain bool
		want  string // the address, or words of the error after "!"
	}{
		{"cluster", false, "https://cluster"},
		{"Cluster.tail1234.ts.net.", false, "https://cluster.tail1234.ts.net"},
		{"cluster.tail1234.ts.net", true, "http://cluster.tail1234.ts.net"},
		{"https://cluster.tail1234.ts.net/", false, "https://cluster.tail1234.ts.net"},
		{"https://cluster:443", false, "https://cluster"},
		{"http://cluster", false, "http://cluster"},
		{"http://cluster:80", true, "http://cluster"},
		{"https://cluster", true, "!--http"},
		{"https://cluster:6443", false, "!leave out the port: proxies answer on 443"},
		{"http://cluster:443", false, "!leave out the port: proxies answer on 80"},
		{"https://cluster/api", false, "!without user, path"},
		{"https://me@cluster", false, "!without user, path"},
		{"https://cluster?x", false, "!without user, path"},
		{"ftp://cluster", false, "!https or http"},
		{"https://%zz", false, "!invalid URL escape"},
		{"", false, "!give the proxy's name"},
		{"a b", false, "!give the proxy's name"},
		{"cluster:443", false, "!give the proxy's name"},
		{"100.64.0.1", false, "!give the proxy's name"},
		{"https://[fd7a::1]", false, "!give the proxy's name"},
		{"https://", false, "!give the proxy's name"},
	} {
		got, err := kubeconfig.ParseTarget(tc.name, tc.plain)
		switch words, refused := strings.CutPrefix(tc.want, "!"); {
		case refused && (err == nil || !strings.Contains(err.Error(), words)):
			t.Errorf("%q: %v %v, want an error with %q", tc.name, got, err, words)
		case !refused && (err != nil || got.URL() != tc.want):
			t.Errorf("%q: %v %v, want %s", tc.name, got, err, tc.want)
		}
	}
}

func TestComplete(t *testing.T) {
	t.Parallel()
	short := kubeconfig.Target{Scheme: "https", Host: "cluster"}
	if got := short.Complete(".Tail1234.ts.net.").Host; got != "cluster.tail1234.ts.net" {
		t.Errorf("a short name became %s", got)
	}
	full := kubeconfig.Target{Scheme: "https", Host: "cluster.other.ts.net"}
	if got := full.Complete("tail1234.ts.net"); got != full {
		t.Errorf("a full name became %s", got.Host)
	}
}

func TestContext(t *testing.T) {
	t.Parallel()
	target := kubeconfig.Target{Scheme: "https", Host: "cluster.tail1234.ts.net"}
	config := clientcmdapi.NewConfig()
	for name, server := range map[string]string{
		"plain": "http://cluster.tail1234.ts.net", "other": "https://other.tail1234.ts.net",
		"path": "https://cluster.tail1234.ts.net/k8s", "no scheme": "cluster.tail1234.ts.net",
	} {
		config.Clusters[name] = &clientcmdapi.Cluster{Server: server}
		config.Contexts[name] = &clientcmdapi.Context{Cluster: name}
	}
	config.Contexts["dangling"] = &clientcmdapi.Context{Cluster: "gone"}
	if got := target.Context(config); got != "" {
		t.Errorf("found %q", got)
	}
	config.Clusters["same"] = &clientcmdapi.Cluster{Server: "https://Cluster.tail1234.ts.net:443/"}
	config.Contexts["b"] = &clientcmdapi.Context{Cluster: "same"}
	config.Contexts["a"] = &clientcmdapi.Context{Cluster: "same"}
	config.CurrentContext = "other"
	if got := target.Context(config); got != "a" {
		t.Errorf("found %q, want the first", got)
	}
	config.CurrentContext = "b"
	if got := target.Context(config); got != "b" {
		t.Errorf("found %q, want the current one", got)
	}
}

func TestSelf(t *testing.T) {
	t.Parallel()
	tags := views.SliceOf([]string{"tag:ci"})
	users := map[tailcfg.UserID]tailcfg.UserProfile{7: {LoginName: "alice@example.com"}, 8: {LoginName: "tagged-devices"}}
	for name, tc := range map[string]struct {
		status ipnstate.Status
		want   string
	}{
		"user":       {ipnstate.Status{Self: &ipnstate.PeerStatus{DNSName: "laptop.tail1234.ts.net.", UserID: 7}, User: users}, "alice@example.com"},
		"tagged":     {ipnstate.Status{Self: &ipnstate.PeerStatus{DNSName: "ci.tail1234.ts.net.", UserID: 8, Tags: &tags}, User: users}, "ci.tail1234.ts.net"},
		"logged out": {ipnstate.Status{BackendState: "NeedsLogin", Self: &ipnstate.PeerStatus{}}, ""},
		"nobody":     {ipnstate.Status{}, ""},
	} {
		if got, err := kubeconfig.Self(&tc.status); got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s: %q %v, want %q", name, got, err, tc.want)
		}
	}
}

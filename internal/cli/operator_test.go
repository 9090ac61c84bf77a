// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/tailhelm/tailhelm/internal/apiproxy"
	"github.com/tailhelm/tailhelm/internal/tailapi"
	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// operatorEnv is a right configuration, as the chart sets it.
var operatorEnv = vars{
	"APISERVER_PROXY": "true", "OPERATOR_HOSTNAME": "kube", "OPERATOR_NAMESPACE": "tailscale", "OPERATOR_SECRET": "operator",
	"OPERATOR_INITIAL_TAGS": "tag:k8s-operator,tag:prod", "OPERATOR_LOGIN_SERVER": "https://control.example.com/", "TS_PORT": "41641",
	"CLIENT_ID_FILE": "/oauth/client_id", "CLIENT_SECRET_FILE": "/oauth/client_secret",
}

// newOperatorOptions are options as the flags leave them.
func newOperatorOptions() *operatorOptions {
	o := &operatorOptions{idTokenFile: "/token"}
	o.tls, o.metricsAddress, o.drainTimeout, o.peerConnections = tlsACME, ":9002", 1, 1
	return o
}

func TestOperatorOptions(t *testing.T) {
	o := newOperatorOptions()
	if err := o.read(operatorEnv.environment()); err != nil {
		t.Fatal(err)
	}
	if o.mode != apiproxy.ModeAuth || o.hostname != "kube" || o.namespace != "tailscale" || o.stateSecret != "operator" || o.loginServer != "https://control.example.com" || o.port != 41641 {
		t.Errorf("read as %+v", o)
	}
	if diff := cmp.Diff([]string{"tag:k8s-operator", "tag:prod"}, o.tags); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
	want := tailapi.Credentials{BaseURL: "https://control.example.com", IDTokenFile: "/token", ClientIDFile: "/oauth/client_id", ClientSecretFile: "/oauth/client_secret"}
	if diff := cmp.Diff(want, o.credentials); diff != "" {
		t.Errorf("credentials (-want +got):\n%s", diff)
	}
	if m, ok := o.keys.(*tailnet.Minter); !ok || m.API != o.api || o.api == nil || !slices.Equal(m.Tags, o.tags) {
		t.Errorf("keys %+v", o.keys)
	}
}

func TestOperatorDefaults(t *testing.T) {
	o := newOperatorOptions()
	env := vars{"APISERVER_PROXY": "noauth", "OPERATOR_NAMESPACE": "tailscale", "OPERATOR_SECRET": "operator", "TS_AUTHKEY": "tskey"}
	if err := o.read(env.environment()); err != nil {
		t.Fatal(err)
	}
	if o.mode != apiproxy.ModeNoAuth || o.hostname != "tailscale-operator" || o.loginServer != "" || o.port != 0 || o.keys != tailnet.FixedAuthKey("tskey") {
		t.Errorf("read as %+v", o)
	}
	if diff := cmp.Diff([]string{"tag:k8s-operator"}, o.tags); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
}

// Without a proxy nothing else needs to be configured.
func TestOperatorOff(t *testing.T) {
	for _, env := range []vars{{}, {"APISERVER_PROXY": "false"}, {"AUTH_PROXY": "false"}} {
		o := newOperatorOptions()
		if err := o.read(env.environment()); err != nil || o.mode != "" || o.keys != nil {
			t.Errorf("%v: mode %q, keys %v, %v", env, o.mode, o.keys, err)
		}
	}
}

func TestOperatorOptionsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		env  vars
		want string
	}{
		"mode":               {operatorEnv.with("APISERVER_PROXY", "auth"), `APISERVER_PROXY="auth": choose true, false or noauth`},
		"hostname":           {operatorEnv.with("OPERATOR_HOSTNAME", "Kube"), `OPERATOR_HOSTNAME="Kube": give a DNS label`},
		"Secret":             {operatorEnv.with("OPERATOR_SECRET", ""), `OPERATOR_SECRET="": give the name of the Secret`},
		"login server":       {operatorEnv.with("OPERATOR_LOGIN_SERVER", "control"), `OPERATOR_LOGIN_SERVER="control": give the address`},
		"tags":               {operatorEnv.with("OPERATOR_INITIAL_TAGS", "tag:a,b"), `OPERATOR_INITIAL_TAGS="tag:a,b": tag "b": `},
		"tags with a space":  {operatorEnv.with("OPERATOR_INITIAL_TAGS", "tag:a, tag:b"), `OPERATOR_INITIAL_TAGS="tag:a, tag:b": tag " tag:b": `},
		"port":               {operatorEnv.with("TS_PORT", "65536"), `TS_PORT="65536": give a UDP port from 0 to 65535`},
		"port, negative":     {operatorEnv.with("TS_PORT", "-1"), `TS_PORT="-1": give a UDP port`},
		"no credentials":     {operatorEnv.with("CLIENT_ID_FILE", "").with("CLIENT_SECRET_FILE", ""), `CLIENT_ID_FILE="": give CLIENT_ID_FILE and CLIENT_SECRET_FILE (an OAuth client), CLIENT_ID`},
		"no client ID":       {operatorEnv.with("CLIENT_ID_FILE", ""), `CLIENT_ID_FILE="": goes with CLIENT_SECRET_FILE: give both`},
		"no client secret":   {operatorEnv.with("CLIENT_SECRET_FILE", ""), `CLIENT_SECRET_FILE="": goes with CLIENT_ID_FILE: give both`},
		"key and client":     {operatorEnv.with("TS_AUTHKEY", "tskey-secret"), `TS_AUTHKEY="(hidden)": an OAuth client is configured, too`},
		"identity and files": {operatorEnv.with("CLIENT_ID", "id"), `CLIENT_ID="id": CLIENT_ID_FILE or CLIENT_SECRET_FILE is set, too`},
		"identity and key": {
			operatorEnv.with("CLIENT_ID_FILE", "").with("CLIENT_SECRET_FILE", "").with("CLIENT_ID", "id").with("TS_AUTHKEY", "tskey-secret"), `TS_AUTHKEY="(hidden)": `,
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOperatorOptions()
			err := o.read(tc.env.environment())
			checkSetting(t, err, tc.want)
			if err != nil && strings.Contains(err.Error(), "tskey-secret") {
				t.Errorf("the message holds a key: %v", err)
			}
		})
	}
}

// In a pod the namespace is known, too; elsewhere it must be given.
func TestOperatorNamespace(t *testing.T) {
	got, err := operatorNamespace(vars{}.environment())
	if _, exists := os.Stat("/var/run/secrets/kubernetes.io/serviceaccount/namespace"); exists == nil {
		if got == "" || err != nil {
			t.Errorf("namespace %q, %v", got, err)
		}
		return
	}
	checkSetting(t, err, `OPERATOR_NAMESPACE="": give the namespace`)
}

func TestOperatorWorkloadIdentity(t *testing.T) {
	o := newOperatorOptions()
	if err := o.read(operatorEnv.with("CLIENT_ID_FILE", "").with("CLIENT_SECRET_FILE", "").with("CLIENT_ID", "id").environment()); err != nil {
		t.Fatal(err)
	}
	if c := o.credentials; o.api == nil || c.ClientID != "id" || c.IDTokenFile != "/token" {
		t.Errorf("credentials %+v", c)
	}
}

func TestProxyMode(t *testing.T) {
	for name, tc := range map[string]struct {
		value, deprecated string
		want              apiproxy.Mode
		err               string
	}{
		"neither":             {},
		"true":                {value: "true", want: apiproxy.ModeAuth},
		"false":               {value: "false"},
		"noauth":              {value: "noauth", want: apiproxy.ModeNoAuth},
		"capitals":            {value: "True", err: `APISERVER_PROXY="True": choose`},
		"1":                   {value: "1", err: `APISERVER_PROXY="1": choose`},
		"deprecated":          {deprecated: "true", want: apiproxy.ModeAuth},
		"deprecated, 1":       {deprecated: "1", want: apiproxy.ModeAuth},
		"deprecated, false":   {deprecated: "false"},
		"deprecated, noauth":  {deprecated: "noauth", err: `AUTH_PROXY="noauth": is deprecated`},
		"both":                {value: "true", deprecated: "true", err: `AUTH_PROXY="true": is deprecated and APISERVER_PROXY is set, too`},
		"both, deprecated no": {value: "noauth", deprecated: "false", err: `AUTH_PROXY="false": `},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := proxyMode(tc.value, tc.deprecated)
			checkSetting(t, err, tc.err)
			if got != tc.want {
				t.Errorf("mode %q, want %q", got, tc.want)
			}
		})
	}
}

func TestClusterConfig(t *testing.T) {
	path := kubeconfig(t, "https://api.example.com", &clientcmdapi.AuthInfo{Token: "t"})
	config, err := clusterConfig("KUBECONFIG", path)
	if err != nil || config.Host != "https://api.example.com" || config.BearerToken != "t" {
		t.Errorf("%+v, %v", config, err)
	}
	_, err = clusterConfig("KUBECONFIG", writeFile(t, "bad", "{"))
	checkSetting(t, err, `KUBECONFIG="`)
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	_, err = clusterConfig("KUBECONFIG", "")
	checkSetting(t, err, `KUBECONFIG="": not in a cluster: `)
}

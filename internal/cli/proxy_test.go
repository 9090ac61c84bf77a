// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/tailhelm/tailhelm/internal/apiproxy"
)

// newProxyOptions returns right options for an API server, which a test changes.
func newProxyOptions(t *testing.T, server string) *proxyOptions {
	t.Helper()
	o := &proxyOptions{mode: "auth", hostname: "kube", kubeconfig: kubeconfig(t, server, &clientcmdapi.AuthInfo{Token: "t"})}
	o.tls, o.metricsAddress, o.drainTimeout, o.peerConnections = tlsOff, "127.0.0.1:0", 1, 1
	o.stateDir = filepath.Join(t.TempDir(), "state")
	return o
}

// asReplica makes o the right options of a replica of a ProxyGroup.
func asReplica(o *proxyOptions) *replicaOptions {
	o.tls, o.tags = tlsACME, []string{"tag:k8s"}
	o.replica = replicaOptions{service: "svc:kube", podOptions: podOptions{namespace: "n", stateSecret: "g-0", authKeySecret: "g-0-config"}, tlsSecret: "g-tls", lease: "g", impersonator: "i"}
	return &o.replica
}

func TestProxyOptions(t *testing.T) {
	const server = "https://api.example.com"
	for name, tc := range map[string]struct {
		change func(*proxyOptions)
		env    vars
		want   string
	}{
		"right":              {func(*proxyOptions) {}, nil, ""},
		"noauth":             {func(o *proxyOptions) { o.mode = "noauth" }, nil, ""},
		"tags and a server":  {func(o *proxyOptions) { o.tags, o.loginServer = []string{"tag:k8s"}, "https://control.example.com" }, nil, ""},
		"log level":          {func(o *proxyOptions) { o.logLevel = "loud" }, nil, `--log-level="loud": choose`},
		"mode":               {func(o *proxyOptions) { o.mode = "" }, nil, `--mode="": choose auth or noauth`},
		"TLS":                {func(o *proxyOptions) { o.tls = "x" }, nil, `--tls="x": choose`},
		"hostname":           {func(o *proxyOptions) { o.hostname = "kube.example" }, nil, `--hostname="kube.example": give a DNS label`},
		"tags":               {func(o *proxyOptions) { o.tags = []string{"k8s"} }, nil, `--tags="k8s": tag "k8s": `},
		"login server":       {func(o *proxyOptions) { o.loginServer = "x" }, nil, `--login-server="x": give the address`},
		"auth key":           {func(o *proxyOptions) { o.authKeyFile = "/nowhere" }, nil, `--auth-key-file="/nowhere": `},
		"two auth keys":      {func(o *proxyOptions) { o.authKeyFile = "/nowhere" }, vars{"TS_AUTHKEY": "k"}, `--auth-key-file="/nowhere": TS_AUTHKEY is set, too`},
		"no kubeconfig":      {func(o *proxyOptions) { o.kubeconfig = "" }, nil, `--kubeconfig="": give the kubeconfig`},
		"kubeconfig missing": {func(o *proxyOptions) { o.kubeconfig = "/nowhere" }, nil, `--kubeconfig="/nowhere": `},
		"state folder":       {func(o *proxyOptions) { o.stateDir = "/dev/null/x" }, nil, `--state-dir="/dev/null/x": `},
		"replica's flag":     {func(o *proxyOptions) { o.replica.lease = "l" }, nil, `--lease="l": goes with --service`},
		"service":            {func(o *proxyOptions) { asReplica(o).service = "kube" }, nil, `--service="kube": `},
		"no state Secret":    {func(o *proxyOptions) { asReplica(o).stateSecret = "" }, nil, `--state-secret="": --service needs it`},
		"no key Secret":      {func(o *proxyOptions) { asReplica(o).authKeySecret = "" }, nil, `--auth-key-secret="": --service needs it`},
		"no TLS Secret":      {func(o *proxyOptions) { asReplica(o).tlsSecret = "" }, nil, `--tls-secret="": --service needs it`},
		"no Lease":           {func(o *proxyOptions) { asReplica(o).lease = "" }, nil, `--lease="": --service needs it`},
		"untagged replica":   {func(o *proxyOptions) { asReplica(o); o.tags = nil }, nil, `--tags="": hosts of a Service are tagged`},
		"replica's TLS":      {func(o *proxyOptions) { asReplica(o); o.tls = tlsOff }, nil, `--tls="off": replicas share a certificate`},
		"replica's key file": {func(o *proxyOptions) { asReplica(o); o.authKeyFile = "f" }, nil, `--auth-key-file="f": the auth keys of a replica`},
		"withdraw delay":     {func(o *proxyOptions) { asReplica(o).withdrawDelay = -1 }, nil, `--withdraw-delay="-1ns": give a duration from 0`},
		"endpoints":          {func(o *proxyOptions) { asReplica(o).staticEndpoints = []string{"x"} }, nil, `--static-endpoints="x": `},
		"no namespace":       {func(o *proxyOptions) { asReplica(o).namespace = "" }, nil, `--namespace="": give the namespace`},
		"replica's port":     {func(o *proxyOptions) { asReplica(o) }, vars{"TS_PORT": "x"}, `TS_PORT="x": give a UDP port`},
		"certificate files":  {func(o *proxyOptions) { o.tls, o.tlsCertFile, o.tlsKeyFile = tlsFile, "/nowhere/c", "/nowhere/k" }, nil, `--tls-cert-file="/nowhere/c": `},
	} {
		t.Run(name, func(t *testing.T) {
			o := newProxyOptions(t, server)
			tc.change(o)
			s, err := o.service(tc.env.environment(), &bytes.Buffer{})
			checkSetting(t, err, tc.want)
			if err == nil && (s.upstream.Host != server || s.mode != apiproxy.Mode(o.mode)) {
				t.Errorf("mode %s for %s", s.mode, s.upstream.Host)
			}
		})
	}
}

// The flag wins over the environment, which is what kubectl reads.
func TestProxyKubeconfig(t *testing.T) {
	o := newProxyOptions(t, "https://flag.example.com")
	env := vars{"KUBECONFIG": kubeconfig(t, "https://env.example.com", &clientcmdapi.AuthInfo{})}
	for _, want := range []string{"https://flag.example.com", "https://env.example.com"} {
		s, err := o.service(env.environment(), &bytes.Buffer{})
		if err != nil || s.upstream.Host != want {
			t.Fatalf("%+v, %v, want %s", s, err, want)
		}
		o.kubeconfig = ""
	}
}

// The state of the device is for its owner's eyes.
func TestProxyStateDir(t *testing.T) {
	o := newProxyOptions(t, "https://api.example.com")
	if _, err := o.service(vars{}.environment(), &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(o.stateDir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v, want mode 0700", info, err)
	}
}

// Credentials that may do everything would turn a defect of the proxy into
// somebody's cluster, so the proxy does not start with them.
func TestProxyRefusesAllPowerfulCredentials(t *testing.T) {
	rule := func(verb, resource string) []authorizationv1.ResourceRule {
		return []authorizationv1.ResourceRule{{Verbs: []string{verb}, APIGroups: []string{"*"}, Resources: []string{resource}}}
	}
	for name, tc := range map[string]struct {
		mode  string
		rules []authorizationv1.ResourceRule
		want  bool
	}{
		"everything":            {"auth", rule("*", "*"), true},
		"impersonation only":    {"auth", rule("impersonate", "users"), false},
		"nothing, for now":      {"auth", nil, false},
		"everything, in noauth": {"noauth", rule("*", "*"), false},
	} {
		t.Run(name, func(t *testing.T) {
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_ = json.NewEncoder(w).Encode(authorizationv1.SelfSubjectRulesReview{
					TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectRulesReview"},
					Status:   authorizationv1.SubjectRulesReviewStatus{ResourceRules: tc.rules},
				})
			}))
			defer api.Close()
			o := newProxyOptions(t, api.URL)
			o.mode = tc.mode
			s, err := o.service(vars{}.environment(), &bytes.Buffer{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = o.checkCredentials(t.Context(), s)
			if (err != nil) != tc.want || err != nil && !strings.Contains(err.Error(), "may do everything") {
				t.Errorf("error %v", err)
			}
		})
	}
}

// When the API server answers only after the start, such credentials still end the process.
func TestProxyRefusesAllPowerfulCredentialsLater(t *testing.T) {
	var asked atomic.Int32
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(authorizationv1.SelfSubjectRulesReview{
			TypeMeta: metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectRulesReview"},
			Status:   authorizationv1.SubjectRulesReviewStatus{ResourceRules: []authorizationv1.ResourceRule{{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}}}},
		})
	}))
	defer api.Close()
	o := newProxyOptions(t, api.URL)
	s, err := o.service(vars{}.environment(), &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if good, err := o.checkCredentials(t.Context(), s); good || err != nil {
		t.Fatalf("an API server that is away: %t, %v", good, err)
	}
	if err := o.watchCredentials(t.Context(), s); err == nil || !strings.Contains(err.Error(), "may do everything") {
		t.Errorf("error %v", err)
	}
}

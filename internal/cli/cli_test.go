// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// vars are environment variables.
type vars map[string]string

func (v vars) environment() environment { return func(name string) string { return v[name] } }

// with returns a copy of v in which name has a value.
func (v vars) with(name, value string) vars {
	c := vars{name: value}
	for n, old := range v {
		if n != name {
			c[n] = old
		}
	}
	return c
}

// environ returns v in the form of os.Environ.
func (v vars) environ() []string {
	var all []string
	for name, value := range v {
		all = append(all, name+"="+value)
	}
	return all
}

// checkSetting checks that err is wrong configuration and begins with the setting
// and its value, in one line.
func checkSetting(t *testing.T, err error, want string) {
	t.Helper()
	var setting *settingError
	switch {
	case want == "" && err != nil:
		t.Errorf("error %v, want none", err)
	case want == "":
	case !errors.As(err, &setting):
		t.Errorf("error %v, want one about %s", err, want)
	case !strings.HasPrefix(err.Error(), want):
		t.Errorf("error %q, want %s...", err, want)
	}
}

// writeFile writes a file into a folder of the test and returns its path.
func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// kubeconfig writes a kubeconfig for an API server.
func kubeconfig(t *testing.T, server string, user *clientcmdapi.AuthInfo) string {
	t.Helper()
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: server}
	config.AuthInfos["u"] = user
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitStatus(t *testing.T) {
	forever := httptest.NewServer(http.NotFoundHandler())
	defer forever.Close()
	for name, tc := range map[string]struct {
		args   []string
		env    vars
		code   int
		stdout string
		stderr string
	}{
		"version":          {[]string{"version"}, nil, 0, "tailhelm dev go", ""},
		"help":             {nil, nil, 0, "Reach a Kubernetes API server over a tailnet", ""},
		"unknown command":  {[]string{"frobnicate"}, nil, 2, "", `tailhelm: unknown command "frobnicate" for "tailhelm"` + "\n"},
		"unknown flag":     {[]string{"proxy", "--frobnicate"}, nil, 2, "", "tailhelm: unknown flag: --frobnicate\n"},
		"argument":         {[]string{"proxy", "x"}, nil, 2, "", `tailhelm: unknown command "x" for "tailhelm proxy"` + "\n"},
		"malformed flag":   {[]string{"proxy", "--drain-timeout", "soon"}, nil, 2, "", `tailhelm: invalid argument "soon" for "--drain-timeout" flag: `},
		"bad mode":         {[]string{"proxy", "--mode", "true"}, nil, 2, "", `tailhelm: --mode="true": choose auth or noauth` + "\n"},
		"bad log level":    {[]string{"proxy", "--log-level", "loud"}, nil, 2, "", `tailhelm: --log-level="loud": choose debug (or dev), info, warn or error` + "\n"},
		"bad environment":  {[]string{"operator"}, vars{"APISERVER_PROXY": "yes"}, 2, "", `tailhelm: APISERVER_PROXY="yes": choose true, false or noauth` + "\n"},
		"bad logging":      {[]string{"operator"}, vars{"OPERATOR_LOGGING": "loud"}, 2, "", `tailhelm: OPERATOR_LOGGING="loud": choose debug (or dev), info, warn or error` + "\n"},
		"operator, no API": {[]string{"operator"}, operatorEnv.with("KUBECONFIG", "/nowhere"), 2, "", `tailhelm: KUBECONFIG="/nowhere": `},
		"address in use":   {[]string{"operator", "--metrics-address", forever.Listener.Addr().String()}, nil, 2, "", `tailhelm: --metrics-address="` + forever.Listener.Addr().String() + `": listen tcp`},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := Main(tc.args, tc.env.environ(), &stdout, &stderr); code != tc.code {
				t.Errorf("exit status %d, want %d", code, tc.code)
			}
			if !strings.HasPrefix(stdout.String(), tc.stdout) || (tc.stdout == "") != (stdout.Len() == 0) {
				t.Errorf("stdout %q, want %q...", &stdout, tc.stdout)
			}
			if !strings.HasPrefix(stderr.String(), tc.stderr) || strings.Count(stderr.String(), "\n") > 1 {
				t.Errorf("stderr %q, want the one line %q...", &stderr, tc.stderr)
			}
		})
	}
}

func TestLookup(t *testing.T) {
	env := lookup([]string{"A=1", "B=x=y", "C=", "D", "A_B=2"})
	for name, want := range map[string]string{"A": "1", "B": "x=y", "C": "", "D": "", "A_B": "2", "E": ""} {
		if got := env(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

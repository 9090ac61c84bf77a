// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
	"tailscale.com/types/views"
)

// aliceStatus is what tailscaled says on a device of alice, or on a tagged one.
func aliceStatus(tags ...string) *ipnstate.Status {
	s := &ipnstate.Status{
		BackendState:   "Running",
		CurrentTailnet: &ipnstate.TailnetStatus{MagicDNSSuffix: "tail1234.ts.net"},
		Self:           &ipnstate.PeerStatus{DNSName: "laptop.tail1234.ts.net.", UserID: 7},
		User:           map[tailcfg.UserID]tailcfg.UserProfile{7: {LoginName: "alice@example.com"}},
	}
	if len(tags) > 0 {
		slice := views.SliceOf(tags)
		s.Self.Tags = &slice
	}
	return s
}

// runKubeconfig runs the command with a tailscaled that says status, or is not there.
func runKubeconfig(status *ipnstate.Status, args ...string) (stdout, stderr string, err error) {
	c := newKubeconfigWith(func(context.Context) (*ipnstate.Status, error) {
		if status == nil {
			return nil, errors.New("no tailscaled")
		}
		return status, nil
	})
	var out, errs bytes.Buffer
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&errs)
	c.SilenceErrors, c.SilenceUsage = true, true
	err = c.ExecuteContext(context.Background())
	return out.String(), errs.String(), err
}

func TestKubeconfigSettings(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"give the name of one proxy":          {},
		"give the name of one proxy, for":     {"a", "b"},
		`NAME="a b": give the proxy's name`:   {"a b"},
		`NAME="https://a:1": leave out the p`: {"https://a:1"},
		`NAME="https://a": an https address`:  {"https://a", "--http"},
		`--mode="true": choose auth or noau`:  {"a", "--mode=true"},
		`--as-group="x": works with --mode=`:  {"a", "--mode=noauth", "--as-group=x"},
		`--as-group="": give the name of a`:   {"a", "--as-group="},
		`--namespace="A_b": give the name`:    {"a", "--namespace=A_b"},
		`--kubeconfig="f": --stdout writes`:   {"a", "--kubeconfig=f", "--stdout"},
	} {
		_, _, err := runKubeconfig(aliceStatus(), args...)
		checkSetting(t, err, want)
	}
}

func TestKubeconfigStdout(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	t.Setenv("KUBECONFIG", file)
	for name, tc := range map[string]struct {
		status *ipnstate.Status
		args   []string
		want   []string
		not    string
		stderr string
	}{
		"full name, no tailscaled": {nil, []string{"cluster.tail1234.ts.net"}, []string{"server: https://cluster.tail1234.ts.net\n", "token: unused", "current-context: cluster.tail1234.ts.net"}, "as:", ""},
		"short name":               {aliceStatus(), []string{"cluster", "--http"}, []string{"server: http://cluster.tail1234.ts.net\n", "name: tailscale-auth\n"}, "as:", ""},
		"fewer groups": {
			aliceStatus(),
			[]string{"cluster", "--as-group=a", "--as-group=b,c", "--context=few", "--namespace=dev", "--set-current=false"},
			[]string{"as: alice@example.com\n", "    - a\n    - b,c\n", "name: few\n", "namespace: dev", `current-context: ""`},
			"tagged", "",
		},
		"a tagged device": {aliceStatus("tag:ci"), []string{"cluster.tail1234.ts.net", "--as-group=a"}, []string{"as: laptop.tail1234.ts.net\n"}, "alice", ""},
		"noauth":          {nil, []string{"cluster.tail1234.ts.net", "--mode=noauth"}, []string{"server: https://cluster.tail1234.ts.net\n"}, "unused", "set-context cluster.tail1234.ts.net --user=my-user"},
	} {
		stdout, stderr, err := runKubeconfig(tc.status, append(tc.args, "--stdout")...)
		if err != nil || strings.Contains(stdout, tc.not) || !strings.Contains(stderr, tc.stderr) || (tc.stderr == "") != (stderr == "") {
			t.Errorf("%s: %v\n%s\nstderr: %s", name, err, stdout, stderr)
		}
		for _, want := range tc.want {
			if !strings.Contains(stdout, want) {
				t.Errorf("%s has not %q:\n%s", name, want, stdout)
			}
		}
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("--stdout wrote a file: %v", err)
	}
}

func TestKubeconfigWrites(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	t.Setenv("KUBECONFIG", file)
	stdout, stderr, err := runKubeconfig(aliceStatus(), "cluster")
	want := `Wrote the context "cluster.tail1234.ts.net" for https://cluster.tail1234.ts.net to ` + file + " and made it the current one.\n"
	if err != nil || stdout != want || stderr != "" {
		t.Errorf("%v %q %q, want %q", err, stdout, stderr, want)
	}
	// A proxy that changes its mode takes no token that the API server refuses.
	stdout, _, err = runKubeconfig(nil, "cluster.tail1234.ts.net", "--mode=noauth", "--set-current=false")
	if err != nil || strings.Contains(stdout, "current one") || !strings.Contains(stdout, "The context has no user yet.") {
		t.Errorf("%v\n%s", err, stdout)
	}
	explicit := kubeconfigFile(t, "clusters: []\ncontexts: [{name: cluster.tail1234.ts.net, context: {user: me}}]\n")
	stdout, _, err = runKubeconfig(nil, "cluster.tail1234.ts.net", "--mode=noauth", "--kubeconfig="+explicit)
	if err != nil || !strings.Contains(stdout, explicit) || !strings.Contains(stdout, `The context's user "me" is not in the kubeconfig.`) {
		t.Errorf("%v\n%s", err, stdout)
	}
}

func kubeconfigFile(t *testing.T, content string) string {
	t.Helper()
	return writeFile(t, "config", "apiVersion: v1\nkind: Config\n"+content)
}

func TestKubeconfigWithoutTailscaled(t *testing.T) {
	t.Parallel()
	loggedOut := &ipnstate.Status{BackendState: "NeedsLogin", Self: &ipnstate.PeerStatus{}}
	for want, tc := range map[string]struct {
		status *ipnstate.Status
		args   []string
	}{
		"no tailscaled":           {nil, []string{"cluster"}},
		"no tailscaled ":          {nil, []string{"cluster.tail1234.ts.net", "--as-group=a"}},
		"its state is NeedsLogin": {loggedOut, []string{"cluster"}},
		"--as-group: tailscaled":  {loggedOut, []string{"cluster.tail1234.ts.net", "--as-group=a"}},
	} {
		_, _, err := runKubeconfig(tc.status, append(tc.args, "--stdout")...)
		if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) {
			t.Errorf("%q: error %v, want %q", tc.args, err, want)
		}
	}
}

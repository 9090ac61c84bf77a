// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubeconfig_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/tailhelm/tailhelm/internal/kubeconfig"
)

var cluster = kubeconfig.Target{Scheme: "https", Host: "cluster.tail1234.ts.net"}

// paths are those of a kubeconfig with a content, or of one that does not exist.
func paths(t *testing.T, content string) (*clientcmd.PathOptions, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "new", "config")
	if content != "" {
		file = filepath.Join(t.TempDir(), "config")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := clientcmd.NewDefaultPathOptions()
	p.LoadingRules.ExplicitPath = file
	return p, file
}

// same checks that a kubeconfig says what another one says.
func same(t *testing.T, got []byte, want string) {
	t.Helper()
	var values [2]any
	for i, b := range [][]byte{got, []byte(want)} {
		if err := yaml.Unmarshal(b, &values[i]); err != nil {
			t.Fatal(err)
		}
	}
	a, _ := yaml.Marshal(values[0]) // what was read can be written
	b, _ := yaml.Marshal(values[1])
	if string(a) != string(b) {
		t.Errorf("got\n%s\nwant\n%s", a, b)
	}
}

const shared = `
apiVersion: v1
kind: Config
clusters: [{name: cluster.tail1234.ts.net, cluster: {server: "https://cluster.tail1234.ts.net"}}]
users: [{name: tailscale-auth, user: {token: unused}}]
contexts: [{name: cluster.tail1234.ts.net, context: {cluster: cluster.tail1234.ts.net, user: tailscale-auth}}]
current-context: cluster.tail1234.ts.net
`

// full is a kubeconfig in which people have changed things.
const full = `
apiVersion: v1
kind: Config
clusters:
- {name: cluster.tail1234.ts.net, cluster: {server: "http://cluster.tail1234.ts.net", certificate-authority-data: Y2E=, proxy-url: "socks5://p"}}
- {name: work, cluster: {server: "https://work.example.com", certificate-authority: ca.crt}}
users:
- {name: me, user: {token: secret, client-certificate: me.crt}}
- {name: tailscale-auth, user: {token: USERTOKEN}}
contexts:
- {name: cluster.tail1234.ts.net, context: {cluster: cluster.tail1234.ts.net, user: CONTEXTUSER, namespace: dev}}
- {name: work, context: {cluster: work, user: me}}
current-context: work
`

func config(userToken, contextUser string) string {
	return strings.NewReplacer("USERTOKEN", userToken, "CONTEXTUSER", contextUser).Replace(full)
}

func TestWrite(t *testing.T) {
	t.Parallel()
	https := strings.NewReplacer(`"http://cluster`, `"https://cluster`)
	current := strings.NewReplacer("current-context: work", "current-context: cluster.tail1234.ts.net")
	for name, tc := range map[string]struct {
		before  string
		entries kubeconfig.Entries
		want    string
		user    string
		missing bool
	}{
		"a new file": {"", kubeconfig.Entries{SetCurrent: true}, shared, "tailscale-auth", false},
		"again":      {shared, kubeconfig.Entries{SetCurrent: true}, shared, "tailscale-auth", false},
		"what else there is stays": {
			config("unused", "tailscale-auth"),
			kubeconfig.Entries{SetCurrent: true},
			current.Replace(https.Replace(config("unused", "tailscale-auth"))), "tailscale-auth", false,
		},
		"the current context stays": {
			config("unused", "tailscale-auth"), kubeconfig.Entries{}, https.Replace(config("unused", "tailscale-auth")), "tailscale-auth", false,
		},
		"a namespace": {
			config("unused", "tailscale-auth"),
			kubeconfig.Entries{Namespace: "prod"},
			strings.Replace(https.Replace(config("unused", "tailscale-auth")), "namespace: dev", "namespace: prod", 1), "tailscale-auth", false,
		},
		"credentials in the shared user stay": {
			config("mine", "tailscale-auth"),
			kubeconfig.Entries{},
			strings.NewReplacer("user: tailscale-auth,", "user: tailscale-auth-cluster.tail1234.ts.net,",
				"contexts:", "- {name: tailscale-auth-cluster.tail1234.ts.net, user: {token: unused}}\ncontexts:").Replace(https.Replace(config("mine", "tailscale-auth"))),
			"tailscale-auth-cluster.tail1234.ts.net", false,
		},
		"noauth keeps the user": {
			config("unused", "me"), kubeconfig.Entries{NoAuth: true}, https.Replace(config("unused", "me")), "me", false,
		},
		"noauth keeps a user who is to come": {
			config("unused", "later"), kubeconfig.Entries{NoAuth: true}, https.Replace(config("unused", "later")), "later", true,
		},
		"noauth keeps credentials in the shared user": {
			config("mine", "tailscale-auth"), kubeconfig.Entries{NoAuth: true}, https.Replace(config("mine", "tailscale-auth")), "tailscale-auth", false,
		},
		"noauth takes the unused token away": {
			config("unused", "tailscale-auth"),
			kubeconfig.Entries{NoAuth: true},
			strings.Replace(https.Replace(config("unused", "tailscale-auth")), "user: tailscale-auth,", `user: "",`, 1), "", false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, file := paths(t, tc.before)
			tc.entries.Target = cluster
			written, err := kubeconfig.Write(p, tc.entries)
			if err != nil {
				t.Fatal(err)
			}
			if want := (kubeconfig.Written{Context: cluster.Host, Cluster: cluster.Host, User: tc.user, UserMissing: tc.missing, File: file}); written != want {
				t.Errorf("written %+v, want %+v", written, want)
			}
			got, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			same(t, got, tc.want)
			if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v %v, want mode 0600", info.Mode(), err)
			}
		})
	}
}

func TestRender(t *testing.T) {
	t.Parallel()
	narrow := kubeconfig.Entries{Target: cluster, Context: "reads", As: "alice@example.com", Groups: []string{"readers", "a,b"}, Namespace: "dev", SetCurrent: true}
	b, written, err := kubeconfig.Render(narrow)
	if err != nil || written.User != "tailscale-auth-reads" || written.File != "" {
		t.Errorf("%+v %v", written, err)
	}
	same(t, b, `
apiVersion: v1
kind: Config
clusters: [{name: cluster.tail1234.ts.net, cluster: {server: "https://cluster.tail1234.ts.net"}}]
users: [{name: tailscale-auth-reads, user: {token: unused, as: alice@example.com, as-groups: [readers, "a,b"]}}]
contexts: [{name: reads, context: {cluster: cluster.tail1234.ts.net, user: tailscale-auth-reads, namespace: dev}}]
current-context: reads
`)
	b, written, err = kubeconfig.Render(kubeconfig.Entries{Target: cluster, NoAuth: true})
	if err != nil || written.User != "" || strings.Contains(string(b), "unused") {
		t.Errorf("noauth: %+v %v\n%s", written, err, b)
	}
}

// TestSeveralFiles: an entry stays in the file that has it.
func TestSeveralFiles(t *testing.T) {
	first, second := filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "second")
	if err := os.WriteFile(first, []byte(config("unused", "me")), 0o600); err != nil {
		t.Fatal(err)
	}
	two := strings.NewReplacer("cluster.tail", "other.tail", "contexts: [", "contexts: [{name: few, context: {}}, ", "users: [", "users: [{name: tailscale-auth-few, user: {}}, ").Replace(shared)
	if err := os.WriteFile(second, []byte(two), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", first+string(os.PathListSeparator)+second)
	other := kubeconfig.Target{Scheme: "http", Host: "other.tail1234.ts.net"}
	for _, e := range []kubeconfig.Entries{{Target: other}, {Target: other, Context: "few", As: "alice@example.com", Groups: []string{"readers"}}} {
		written, err := kubeconfig.Write(clientcmd.NewDefaultPathOptions(), e)
		if err != nil || written.File != second {
			t.Fatalf("%+v %v, want %s", written, err, second)
		}
	}
	if after, err := os.ReadFile(first); err != nil || string(after) != string(before) {
		t.Errorf("the first file changed (%v):\n%s", err, after)
	}
	after, err := os.ReadFile(second)
	for _, want := range []string{"server: http://other.tail1234.ts.net", "as: alice@example.com"} {
		if err != nil || !strings.Contains(string(after), want) {
			t.Errorf("the second file has not %q (%v):\n%s", want, err, after)
		}
	}
}

// TestLocked: two programs do not write at the same time, and the one that comes second
// changes nothing.
func TestLocked(t *testing.T) {
	t.Parallel()
	p, file := paths(t, shared)
	if err := os.WriteFile(file+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := kubeconfig.Write(p, kubeconfig.Entries{Target: cluster, Namespace: "prod"})
	if err == nil || !strings.Contains(err.Error(), file+".lock") {
		t.Errorf("error %v, want one that names the lock", err)
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != shared {
		t.Errorf("the file changed (%v):\n%s", err, after)
	}
}

func TestUnreadable(t *testing.T) {
	t.Parallel()
	p, file := paths(t, "{")
	if _, err := kubeconfig.Write(p, kubeconfig.Entries{Target: cluster}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("error %v, want one that names the file", err)
	}
	if after, err := os.ReadFile(file); err != nil || string(after) != "{" {
		t.Errorf("the file changed (%v): %s", err, after)
	}
}

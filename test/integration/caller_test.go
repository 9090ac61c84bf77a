// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

var counter atomic.Int64

// unique returns a name that nothing else in this run has.
func unique(prefix string) string { return fmt.Sprintf("%s-%d", prefix, counter.Add(1)) }

// caller is a device of the tailnet that uses a proxy.
type caller struct {
	*tailnet.Device
	t     *testing.T
	proxy *proxy
	// user is who the caller is to Kubernetes.
	user       string
	kubeconfig string
}

// newUser makes a device of a new user, with grants for groups.
func newUser(t *testing.T, p *proxy, groups ...string) *caller {
	t.Helper()
	login := unique("user") + "@example.com"
	if len(groups) > 0 {
		grant(t, p.tailnet, tailnet.KubernetesGrant(login, proxyTag, groups...))
	}
	return newCaller(t, p, tailnet.Identity{Login: login})
}

// newCaller makes a device with an identity. It leaves the tailnet when the test
// ends.
func newCaller(t *testing.T, p *proxy, id tailnet.Identity) *caller {
	t.Helper()
	d, err := p.tailnet.Device(within(t, patience), unique("device"), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.tailnet.Remove(d.Name()) // the test may have done so
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	p.catchUp(t)
	c := &caller{Device: d, t: t, proxy: p, user: id.Login}
	if len(id.Tags) > 0 {
		c.user = d.FQDN()
	}
	c.kubeconfig = c.writeKubeconfig("unused")
	return c
}

// config is what client-go makes of the caller's kubeconfig.
func (c *caller) config() *rest.Config {
	c.t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		c.t.Fatal(err)
	}
	config.QPS = -1
	return config
}

// client is client-go, from the caller's device.
func (c *caller) client() kubernetes.Interface {
	c.t.Helper()
	client, err := kubernetes.NewForConfig(c.config())
	if err != nil {
		c.t.Fatal(err)
	}
	return client
}

// writeKubeconfig writes a kubeconfig as "tailscale configure kubeconfig" does, and
// the SOCKS5 proxy that stands for a machine in the tailnet.
func (c *caller) writeKubeconfig(token string) string {
	c.t.Helper()
	k := clientcmdapi.NewConfig()
	name := c.proxy.host
	k.Clusters[name] = &clientcmdapi.Cluster{
		Server: c.proxy.url(""), ProxyURL: c.ProxyURL().String(), CertificateAuthorityData: c.proxy.tailnet.RootsPEM(),
	}
	k.AuthInfos["tailscale-auth"] = &clientcmdapi.AuthInfo{Token: token}
	k.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: "tailscale-auth"}
	k.CurrentContext = name
	path := filepath.Join(c.t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*k, path); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// command is kubectl from the caller's device.
func (c *caller) command(ctx context.Context, args ...string) *exec.Cmd {
	return shared.cluster.Kubectl(ctx, append([]string{"--kubeconfig", c.kubeconfig}, args...)...)
}

// kubectl runs kubectl from the caller's device, and returns its output and what it
// printed on standard error.
func (c *caller) kubectl(args ...string) (stdout, stderr string, err error) {
	return c.kubectlWith("", args...)
}

// kubectlWith is kubectl with a standard input.
func (c *caller) kubectlWith(stdin string, args ...string) (stdout, stderr string, err error) {
	c.t.Helper()
	cmd := c.command(within(c.t, patience), args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// mustKubectl is kubectl, which must succeed. It returns the output.
func (c *caller) mustKubectl(args ...string) string {
	c.t.Helper()
	stdout, stderr, err := c.kubectl(args...)
	if err != nil {
		c.t.Fatalf("kubectl %s: %v\n%s%s", strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

// whoami is who the API server takes the caller for.
func (c *caller) whoami() (authenticationv1.UserInfo, error) {
	c.t.Helper()
	review, err := c.client().AuthenticationV1().SelfSubjectReviews().Create(
		within(c.t, patience), selfSubjectReview(), metav1.CreateOptions{})
	if err != nil {
		return authenticationv1.UserInfo{}, err
	}
	return review.Status.UserInfo, nil
}

func selfSubjectReview() *authenticationv1.SelfSubjectReview {
	return &authenticationv1.SelfSubjectReview{}
}

// get asks for a path as plain HTTP clients do, and returns the response with its
// body read.
func (c *caller) get(path string, header ...string) (*http.Response, []byte) {
	c.t.Helper()
	return c.do(http.MethodGet, path, nil, header...)
}

// do sends a request. header is names and values in turn.
func (c *caller) do(method, path string, body io.Reader, header ...string) (*http.Response, []byte) {
	c.t.Helper()
	r := c.request(within(c.t, patience), method, path, body, header...)
	res, err := c.HTTPClient().Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return res, b
}

func (c *caller) request(ctx context.Context, method, path string, body io.Reader, header ...string) *http.Request {
	c.t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, c.proxy.url(path), body)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

// grants are what tests have granted, by tailnet: SetGrants replaces all.
var grants struct {
	mu  sync.Mutex
	now map[*tailnet.Tailnet]map[int64][]tailnet.Grant
}

// grant adds grants to those of other tests. revoke takes them away again, which
// the end of the test does too.
func grant(t *testing.T, tn *tailnet.Tailnet, add ...tailnet.Grant) (revoke func()) {
	t.Helper()
	key := counter.Add(1)
	set := func(change func(map[int64][]tailnet.Grant)) error {
		grants.mu.Lock()
		defer grants.mu.Unlock()
		if grants.now == nil {
			grants.now = map[*tailnet.Tailnet]map[int64][]tailnet.Grant{}
		}
		if grants.now[tn] == nil {
			grants.now[tn] = map[int64][]tailnet.Grant{}
		}
		change(grants.now[tn])
		keys := make([]int64, 0, len(grants.now[tn]))
		for k := range grants.now[tn] {
			keys = append(keys, k)
		}
		slices.Sort(keys) // the order of grants is the order of groups
		var all []tailnet.Grant
		for _, k := range keys {
			all = append(all, grants.now[tn][k]...)
		}
		return tn.SetGrants(all...)
	}
	if err := set(func(m map[int64][]tailnet.Grant) { m[key] = add }); err != nil {
		t.Fatal(err)
	}
	revoke = func() {
		if err := set(func(m map[int64][]tailnet.Grant) { delete(m, key) }); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(revoke)
	return revoke
}

// newNamespace makes a namespace in which the subjects may do everything.
func newNamespace(t *testing.T, subjects ...rbacv1.Subject) string {
	t.Helper()
	name := unique("ns")
	admin := shared.cluster.Client()
	_, err := admin.CoreV1().Namespaces().Create(within(t, patience), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Pods want this account.
	eventually(t, "the ServiceAccount default in "+name, func() bool {
		_, err := admin.CoreV1().ServiceAccounts(name).Get(within(t, patience), "default", metav1.GetOptions{})
		return err == nil
	})
	if len(subjects) > 0 {
		bind(t, name, "cluster-admin", subjects...)
	}
	return name
}

// bind gives the rules of a ClusterRole to subjects, in a namespace.
func bind(t *testing.T, namespace, clusterRole string, subjects ...rbacv1.Subject) {
	t.Helper()
	_, err := shared.cluster.Client().RbacV1().RoleBindings(namespace).Create(within(t, patience), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}, Subjects: subjects,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: clusterRole},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func group(name string) rbacv1.Subject {
	return rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: name}
}

func user(name string) rbacv1.Subject {
	return rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: name}
}

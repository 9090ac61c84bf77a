// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	tailscale "tailscale.com/client/tailscale/v2"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/test/kubernetes"
	"github.com/tailhelm/tailhelm/test/tailhelm"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

const (
	releaseSpace  = "tailscale"
	operatorName  = "tailscale-operator"
	documentation = "docs/proxygroup.md"
)

// stage is a cluster with the chart in it, and a tailnet with the policy that the
// documentation has. Controllers of Kubernetes make the chart's Pods, and the operator's
// those of ProxyGroups; a node runs them all.
type stage struct {
	t       *testing.T
	cluster *kubernetes.Cluster
	tailnet *tailnet.Tailnet
	node    *tailhelm.Node
	admin   *tailscale.Client // what a person does in the admin console
	login   string            // a member of group:platform
	text    string            // of the documentation
	dir     string            // with a folder for each Pod
}

// newStage installs the chart.
func newStage(t *testing.T, values ...string) *stage {
	t.Helper()
	s := &stage{t: t, cluster: kubernetes.New(t, kubernetes.Options{ControllerManager: true}), tailnet: tailnet.New(t, tailnet.Options{}), login: unique("user") + "@example.com", dir: t.TempDir()}
	root, err := tailhelm.Root(t.Context())
	noError(t, err)
	s.read(documentation)
	s.setPolicy("group:platform", s.block("json"))
	id, secret := s.tailnet.OAuthClient(operatorTag)
	base, err := url.Parse(s.tailnet.URL())
	noError(t, err)
	s.admin = &tailscale.Client{BaseURL: base, Auth: &tailscale.OAuth{ClientID: id, ClientSecret: secret}}
	s.node, err = tailhelm.StartNode(t.Context(), tailhelm.NodeOptions{
		Name: "node", Config: s.cluster.Config(), Namespace: releaseSpace, Program: shared.program, Dir: s.dir,
		Env: s.tailnet.Environ(),
	})
	noError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := s.cluster.Kubectl(within(t, patience), "describe", "proxygroups").CombinedOutput()
			t.Logf("%s\n%s", out, s.node.Logs())
		}
		if err := s.node.Close(); err != nil {
			t.Error(err)
		}
	})
	args := []string{
		"upgrade", "--install", operatorName, filepath.Join(root, "charts", "tailscale-operator"), "--namespace", releaseSpace, "--create-namespace", "--wait", "--timeout", patience.String(),
		"--set", "workloads.withdrawDelaySeconds=2,operatorConfig.drainTimeoutSeconds=5",
	}
	for _, value := range append([]string{"loginServer=" + s.tailnet.URL(), "apiServerProxyConfig.mode=true", "oauth.clientId=" + id, "oauth.clientSecret=" + secret}, values...) {
		args = append(args, "--set-string", value)
	}
	out, err := s.cluster.Helm(within(t, patience), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("helm: %v\n%s", err, out)
	}
	return s
}

// read makes a file the documentation.
func (s *stage) read(file string) {
	s.t.Helper()
	root, err := tailhelm.Root(s.t.Context())
	noError(s.t, err)
	text, err := os.ReadFile(filepath.Join(root, file))
	noError(s.t, err)
	s.text = string(text)
}

// block returns the documentation's first block of code in a language.
func (s *stage) block(language string) string {
	s.t.Helper()
	found := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindStringSubmatch(s.text)
	if found == nil {
		s.t.Fatalf("the documentation has no block of %s", language)
	}
	return found[1]
}

// setPolicy sets the tailnet policy: that of a documentation, with the caller in a group.
func (s *stage) setPolicy(group, rest string) {
	s.t.Helper()
	policy, err := tailnet.ParsePolicy(fmt.Appendf(nil, `{"groups": {%q: [%q]}, %s}`, group, s.login, rest))
	noError(s.t, err)
	noError(s.t, s.tailnet.SetPolicy(policy))
}

// kubectl is what an administrator of the cluster does.
func (s *stage) kubectl(stdin string, args ...string) string {
	s.t.Helper()
	cmd := s.cluster.Kubectl(within(s.t, patience), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// group returns a ProxyGroup as it is.
func (s *stage) group(name string) *v1alpha1.ProxyGroup {
	s.t.Helper()
	g := &v1alpha1.ProxyGroup{}
	noError(s.t, json.Unmarshal([]byte(s.kubectl("", "get", "proxygroup", name, "--output=json")), g))
	return g
}

// waitReady waits until all replicas of a group are ready, as its spec is now, and returns
// its URL.
func (s *stage) waitReady(name, replicas string) string {
	s.t.Helper()
	var g *v1alpha1.ProxyGroup
	eventually(s.t, fmt.Sprintf("%s with %s", name, replicas), func() bool {
		g = s.group(name)
		c := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ProxyGroupReady)
		return c != nil && c.Status == "True" && c.ObservedGeneration == g.Generation && strings.HasPrefix(c.Message, replicas+" ") && len(g.Status.Tailnet.Services) == 1
	})
	return g.Status.URL
}

// caller is a device of a person in group:platform.
func (s *stage) caller() *caller {
	s.t.Helper()
	p := &proxy{tailnet: s.tailnet, host: operatorName + "." + s.tailnet.Domain(), scheme: "https"}
	return newCaller(s.t, p, tailnet.Identity{Login: s.login})
}

// at returns the caller with a kubeconfig for another address.
func (c *caller) at(address, token string) *caller {
	c.t.Helper()
	u, err := url.Parse(address)
	noError(c.t, err)
	other := *c
	other.proxy = &proxy{tailnet: c.proxy.tailnet, host: u.Host, scheme: u.Scheme}
	other.kubeconfig = other.writeKubeconfig(token)
	return &other
}

// waitWhoami waits until kubectl gets to the API server, and checks who it is there.
func (c *caller) waitWhoami(want ...string) {
	c.t.Helper()
	var out, problem string
	eventually(c.t, "kubectl through "+c.proxy.host, func() bool {
		var err error
		out, problem, err = c.kubectl("auth", "whoami")
		return err == nil
	})
	for _, w := range want {
		if !strings.Contains(out, w) {
			c.t.Errorf("kubectl auth whoami through %s does not say %q:\n%s%s", c.proxy.host, w, out, problem)
		}
	}
}

// names returns what the tailnet has.
func (s *stage) names() (devices, services, keys []string) {
	s.t.Helper()
	ctx := within(s.t, patience)
	list, err := s.admin.Devices().List(ctx)
	noError(s.t, err)
	for _, d := range list {
		devices = append(devices, d.Hostname)
	}
	vips, err := s.admin.VIPServices().List(ctx)
	noError(s.t, err)
	for _, v := range vips {
		services = append(services, v.Name)
	}
	all, err := s.admin.Keys().List(ctx, true)
	noError(s.t, err)
	for _, k := range all {
		if strings.HasPrefix(k.Description, "ProxyGroup ") {
			keys = append(keys, k.Description)
		}
	}
	slices.Sort(devices)
	return devices, services, keys
}

// waitNames waits until the tailnet has these devices and Services, and no auth keys.
func (s *stage) waitNames(devices, services []string) {
	s.t.Helper()
	slices.Sort(devices)
	var d, v, k []string
	defer func() {
		if s.t.Failed() {
			s.t.Logf("devices %q, services %q, auth keys %q", d, v, k)
		}
	}()
	eventually(s.t, fmt.Sprintf("devices %q and services %q", devices, services), func() bool {
		d, v, k = s.names()
		return slices.Equal(d, devices) && slices.Equal(v, services) && len(k) == 0
	})
}

// TestProxyGroup: what the documentation says, with the chart, the operator and the replicas
// as they are: from kubectl apply to people who use the address, through the group's life,
// to nothing left. Beside it are a group in mode noauth and the proxy in the operator.
func TestProxyGroup(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	manifest := s.block("yaml")
	applied := time.Now()
	s.kubectl(manifest, "apply", "--filename=-")
	s.kubectl(strings.NewReplacer("my-cluster", "bare", "mode: auth", "mode: noauth", "replicas: 2", "replicas: 1").Replace(manifest), "apply", "--filename=-")
	s.kubectl("", "wait", "proxygroup", "my-cluster", "--for=condition=ProxyGroupReady=true", "--timeout="+patience.String())
	t.Logf("from kubectl apply to ready: %v", time.Since(applied).Round(100*time.Millisecond))
	address := s.kubectl("", "get", "proxygroup", "my-cluster", "--output=jsonpath={.status.url}")
	if want := "https://my-cluster." + s.tailnet.Domain(); address != want {
		t.Fatalf("url %q, want %q", address, want)
	}
	c := s.caller()
	device := c.Name()

	// Both homes and both modes at once, to one device.
	c.at(address, "unused").waitWhoami(s.login, "platform")
	c.waitWhoami(s.login)
	bare := s.waitReady("bare", "1/1")
	token, err := s.cluster.ServiceAccountToken(t.Context(), "default", "default")
	noError(t, err)
	c.at(bare, token).waitWhoami("system:serviceaccount:default:default")
	if out, problem, err := c.at(bare, "unused").kubectl("auth", "whoami"); err == nil || !strings.Contains(problem, "logged in") && !strings.Contains(problem, "Unauthorized") {
		t.Errorf("noauth without credentials: %v %s%s", err, out, problem)
	}
	s.waitNames([]string{operatorName, device, "my-cluster-0", "my-cluster-1", "bare-0"}, []string{"svc:bare", "svc:my-cluster"})

	// Scale.
	for _, devices := range [][]string{{"my-cluster-0", "my-cluster-1", "my-cluster-2"}, {"my-cluster-0"}} {
		n := len(devices)
		s.patch("my-cluster", fmt.Sprintf(`{"spec":{"replicas":%d}}`, n))
		s.waitReady("my-cluster", fmt.Sprintf("%d/%d", n, n))
		c.at(address, "unused").waitWhoami(s.login, "platform")
		s.waitNames(append(devices, operatorName, device, "bare-0"), []string{"svc:bare", "svc:my-cluster"})
	}

	// Rename. The documentation's grant is for the old name alone.
	s.setPolicy("group:platform", strings.ReplaceAll(s.block("json"), "svc:my-cluster", "svc:renamed"))
	s.patch("my-cluster", `{"spec":{"kubeAPIServer":{"hostname":"renamed"}}}`)
	renamed := s.waitReady("my-cluster", "1/1")
	if want := "https://renamed." + s.tailnet.Domain(); renamed != want {
		t.Fatalf("url %q, want %q", renamed, want)
	}
	c.at(renamed, "unused").waitWhoami(s.login, "platform")
	s.waitNames([]string{operatorName, device, "my-cluster-0", "bare-0"}, []string{"svc:bare", "svc:renamed"})

	// Its device's key ends, as an administrator ends it: the replica asks for an auth key,
	// gets one, and serves again.
	noError(t, s.tailnet.Expire("my-cluster-0"))
	eventually(t, "another auth key", func() bool {
		return strings.Contains(s.kubectl("", "get", "events", "--all-namespaces", "--field-selector=reason=AuthKeyReissued"), "my-cluster")
	})
	s.waitReady("my-cluster", "1/1")
	c.at(renamed, "unused").waitWhoami(s.login, "platform")
	s.waitNames([]string{operatorName, device, "my-cluster-0", "bare-0"}, []string{"svc:bare", "svc:renamed"})

	// A replica's device and the operator's own are removed in the admin console: the group
	// says so, both log in again, and the operator forgets the replica's old device.
	old := s.group("my-cluster").Status.Tailnet.Devices
	noError(t, s.tailnet.Remove("my-cluster-0"))
	noError(t, s.tailnet.Remove(operatorName))
	eventually(t, "a condition that says that the device was removed", func() bool {
		c := meta.FindStatusCondition(s.group("my-cluster").Status.Conditions, v1alpha1.ProxyGroupReady)
		return c != nil && strings.Contains(c.Message, "removed from the tailnet")
	})
	s.waitReady("my-cluster", "1/1")
	c.at(renamed, "unused").waitWhoami(s.login, "platform")
	s.waitNames([]string{operatorName, device, "my-cluster-0", "bare-0"}, []string{"svc:bare", "svc:renamed"})
	c.waitWhoami(s.login)
	eventually(t, "the old device to be forgotten", func() bool {
		now := s.group("my-cluster").Status.Tailnet.Devices
		return len(now) == 1 && !slices.Equal(now, old)
	})

	// Delete one group, and uninstall with the other still there.
	s.kubectl("", "delete", "proxygroup", "my-cluster", "--timeout="+patience.String())
	s.waitNames([]string{operatorName, device, "bare-0"}, []string{"svc:bare"})
	s.checkNoObjects("my-cluster")
	out, err := s.cluster.Helm(within(t, patience), "uninstall", operatorName, "--namespace", releaseSpace, "--timeout", patience.String()).CombinedOutput()
	if err != nil {
		t.Fatalf("helm uninstall: %v\n%s", err, out)
	}
	s.waitNames([]string{device}, nil)
	s.checkNoObjects("bare")
}

// patch edits a group's spec.
func (s *stage) patch(group, patch string) {
	s.t.Helper()
	s.kubectl("", "patch", "proxygroup", group, "--type=merge", "--patch", patch)
}

// checkNoObjects waits until the cluster has nothing of a group.
func (s *stage) checkNoObjects(group string) {
	s.t.Helper()
	var left string
	defer func() {
		if s.t.Failed() {
			s.t.Log(left)
		}
	}()
	eventually(s.t, "nothing left of "+group, func() bool {
		left = s.kubectl("", "get", "secrets,pods,services,serviceaccounts,statefulsets,leases,roles,rolebindings,poddisruptionbudgets,networkpolicies",
			"--namespace", releaseSpace, "--selector=tailscale.com/parent-resource="+group, "--output=name")
		return left == ""
	})
}

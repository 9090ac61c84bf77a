// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/tailhelm/tailhelm/internal/tailnet"
	"github.com/tailhelm/tailhelm/test/kubernetes"
)

// rig is a cluster with what the chart's optional parts expect to be there.
type rig struct {
	*kubernetes.Cluster
	monitoring string // kinds of Prometheus' operator that the cluster knows
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{Cluster: kubernetes.New(t, kubernetes.Options{}), monitoring: ",servicemonitors,podmonitors,prometheusrules"}
	dir, err := moduleDir(t.Context(), "modules/prometheus-operator.mod", "github.com/prometheus-operator/prometheus-operator")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"servicemonitors", "podmonitors", "prometheusrules"} {
		mustRun(t, r.Kubectl(t.Context(), "create", "-f", filepath.Join(dir, "example/prometheus-operator-crd/monitoring.coreos.com_"+name+".yaml")))
	}
	mustRun(t, r.Kubectl(t.Context(), "wait", "--for=condition=Established", "crd", "--all"))
	for _, name := range []string{"staging", "production"} { // for bindings
		r.namespace(t, name)
	}
	return r
}

// namespace makes a namespace that enforces the restricted Pod Security level.
func (r *rig) namespace(t *testing.T, name string) {
	t.Helper()
	_, err := r.Client().CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// upgrade installs or upgrades a release, as the documentation has it.
func (r *rig) upgrade(ctx context.Context, release, namespace string, args ...string) *exec.Cmd {
	return r.Helm(ctx, append([]string{"upgrade", "--install", release, chart, "--namespace=" + namespace}, args...)...)
}

// uninstall uninstalls a release without the Job that cleans up: no pods run here. See TestCleanup.
func (r *rig) uninstall(ctx context.Context, release, namespace string) *exec.Cmd {
	return r.Helm(ctx, "uninstall", release, "--namespace", namespace, "--no-hooks")
}

// admit has the API server admit a pod of each Deployment of a namespace.
func (r *rig) admit(t *testing.T, namespace string) {
	t.Helper()
	deployments, err := r.Client().AppsV1().Deployments(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(deployments.Items) == 0 {
		t.Errorf("no Deployment in namespace %s", namespace)
	}
	for _, d := range deployments.Items {
		pod := &corev1.Pod{ObjectMeta: d.Spec.Template.ObjectMeta, Spec: d.Spec.Template.Spec}
		pod.Name = d.Name + "-0"
		_, err := r.Client().CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Errorf("a pod of Deployment %s is not admitted: %v", d.Name, err)
		}
	}
}

// left returns the names of all objects of a release that are still there.
func (r *rig) left(t *testing.T, release string) []string {
	t.Helper()
	kinds := "proxygroups,proxyclasses,recorders,deployments,jobs,secrets,configmaps,services,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings," +
		"networkpolicies,poddisruptionbudgets,validatingadmissionpolicies,validatingadmissionpolicybindings" + r.monitoring
	out := output(t, r.Kubectl(t.Context(), "get", kinds, "--all-namespaces", "--output=name", "--selector=app.kubernetes.io/component!=state,app.kubernetes.io/instance="+release)) // state is kept: see TestLeftAfterUninstall
	return strings.Fields(out)
}

// TestExamples installs each example, upgrades it to the next one, and uninstalls it. Both are only tried
// first, as people do to see what would change.
func TestExamples(t *testing.T) {
	r := newRig(t)
	files := exampleFiles(t)
	names := sorted(files)
	for i, name := range names {
		t.Run(name, func(t *testing.T) {
			next := names[(i+1)%len(names)]
			r.namespace(t, name)
			mustRun(t, r.upgrade(t.Context(), name, name, "--values", files[name], "--dry-run=server"))
			out := mustRun(t, r.upgrade(t.Context(), name, name, "--values", files[name]))
			if !strings.Contains(out, "STATUS: deployed") {
				t.Errorf("helm says:\n%s", out)
			}
			r.admit(t, name)
			mustRun(t, r.upgrade(t.Context(), name, name, "--values", files[next], "--dry-run=server"))
			mustRun(t, r.upgrade(t.Context(), name, name, "--values", files[next]))
			r.admit(t, name)
			mustRun(t, r.uninstall(t.Context(), name, name))
			if left := r.left(t, name); len(left) > 0 {
				t.Errorf("left after helm uninstall: %v", left)
			}
		})
	}
	t.Run("documented commands", func(t *testing.T) { testDocumentedCommands(t, r) })
	t.Run("two releases", func(t *testing.T) { testTwoReleases(t, r) })
	t.Run("static manifests", func(t *testing.T) { testManifests(t, r) })
	t.Run("permissions", func(t *testing.T) { testPermissions(t, r) })
	t.Run("admission policy", func(t *testing.T) { testAdmissionPolicy(t, r) })
}

// testDocumentedCommands runs the install commands of the documentation of the official chart.
func testDocumentedCommands(t *testing.T, r *rig) {
	t.Helper()
	for name, args := range map[string][]string{
		"auth":                {"--set-string", "apiServerProxyConfig.mode=true"},
		"allow-impersonation": {"--set-string", "apiServerProxyConfig.allowImpersonation=true"},
		"noauth":              {"--set-string", "apiServerProxyConfig.mode=noauth"},
	} {
		t.Run(name, func(t *testing.T) {
			namespace := "documented-" + name
			mustRun(t, r.upgrade(t.Context(), "tailscale-operator", namespace, append([]string{
				"--create-namespace", "--set-string", "oauth.clientId=id", "--set-string", "oauth.clientSecret=secret",
			}, args...)...))
			r.admit(t, namespace)
			mustRun(t, r.uninstall(t.Context(), "tailscale-operator", namespace))
		})
	}
}

// testTwoReleases installs a release beside another in a namespace, and one of the same
// name in another namespace.
func testTwoReleases(t *testing.T, r *rig) {
	t.Helper()
	files := exampleFiles(t)
	r.namespace(t, "two-a")
	r.namespace(t, "two-b")
	mustRun(t, r.upgrade(t.Context(), "one", "two-a", "--values", files["access-bindings"]))
	mustRun(t, r.upgrade(t.Context(), "two", "two-a", "--values", files["access-bindings"], "--values", files["second-release"], "--set", "apiServerProxyConfig.mode=true"))
	mustRun(t, r.upgrade(t.Context(), "one", "two-b", "--values", files["access-bindings"]))
	r.admit(t, "two-a")
	r.admit(t, "two-b")
	before := r.left(t, "one")
	mustRun(t, r.uninstall(t.Context(), "two", "two-a"))
	if after := r.left(t, "one"); !slices.Equal(before, after) {
		t.Errorf("uninstalling a release took objects of others: before %v, after %v", before, after)
	}
	mustRun(t, r.uninstall(t.Context(), "one", "two-a"))
	if left := r.left(t, "one"); len(left) == 0 {
		t.Error("uninstalling a release took that of the same name in another namespace")
	}
	mustRun(t, r.uninstall(t.Context(), "one", "two-b"))
}

// testManifests applies the static manifests, and checks that they give the operator what
// the chart does.
func testManifests(t *testing.T, r *rig) {
	t.Helper()
	mustRun(t, r.Kubectl(t.Context(), "apply", "-f", root+"/manifests/operator.yaml", "-f", root+"/manifests/authproxy-rbac.yaml"))
	r.admit(t, "tailscale")
	if !r.can(t, "system:serviceaccount:tailscale:operator", token("tailscale", "kube-apiserver-auth-proxy")) {
		t.Error("the operator of the manifests cannot get a token to impersonate with")
	}
	mustRun(t, r.Kubectl(t.Context(), "delete", "-f", root+"/manifests/authproxy-rbac.yaml"))
	mustRun(t, r.Kubectl(t.Context(), "delete", "--wait=false", "-f", root+"/manifests/operator.yaml"))
}

// action is something that RBAC decides about.
type action = authorizationv1.ResourceAttributes

func token(namespace, name string) action {
	return action{Verb: "create", Resource: "serviceaccounts", Subresource: "token", Namespace: namespace, Name: name}
}

func (r *rig) can(t *testing.T, user string, a action) bool {
	t.Helper()
	namespace := strings.Split(user, ":")[2]
	review, err := r.Client().AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user, ResourceAttributes: &a,
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return review.Status.Allowed
}

const permissionsNamespace = "permissions"

// Users of testPermissions.
const (
	operator     = "system:serviceaccount:" + permissionsNamespace + ":operator"
	impersonator = "system:serviceaccount:" + permissionsNamespace + ":kube-apiserver-auth-proxy"
)

// testPermissions asks the API server what the ServiceAccounts may do.
func testPermissions(t *testing.T, r *rig) {
	t.Helper()
	r.namespace(t, permissionsNamespace)
	for name, c := range map[string]struct {
		args     []string
		can, not map[string][]action
	}{
		"auth": {
			[]string{"--set", "apiServerProxyConfig.mode=true,controllers.enabled=false"},
			map[string][]action{
				operator:     append(own(), token(permissionsNamespace, "kube-apiserver-auth-proxy")),
				impersonator: {impersonate("users", "alice@example.com"), impersonate("groups", "readers")},
			},
			map[string][]action{
				operator: append(never(), impersonate("users", "alice@example.com"), impersonate("groups", "readers"), impersonate("groups", "system:masters")),
				impersonator: append(append(never(), own()...), impersonate("serviceaccounts", "default"), impersonate("uids", "1"),
					token(permissionsNamespace, "kube-apiserver-auth-proxy"),
					action{Verb: "impersonate", Group: "authentication.k8s.io", Resource: "userextras", Subresource: "scopes", Name: "a"}),
			},
		},
		"limited": {
			[]string{"--values", exampleFiles(t)["access-bindings"], "--set", "apiServerProxyConfig.impersonation.users={alice@example.com},controllers.enabled=false"},
			map[string][]action{impersonator: {impersonate("users", "alice@example.com"), impersonate("groups", "developers"), impersonate("groups", "tag:ci")}},
			map[string][]action{impersonator: {impersonate("users", "bob@example.com"), impersonate("groups", "system:masters"), impersonate("groups", "others"), impersonate("users", "")}},
		},
		"allowImpersonation": {
			[]string{"--set", "apiServerProxyConfig.allowImpersonation=true,controllers.enabled=false"},
			map[string][]action{operator: own(), impersonator: {impersonate("users", "alice@example.com")}},
			map[string][]action{operator: append(never(), token(permissionsNamespace, "kube-apiserver-auth-proxy"))},
		},
		"noauth": {
			[]string{"--set", "apiServerProxyConfig.mode=noauth,controllers.enabled=false"},
			map[string][]action{operator: own()},
			map[string][]action{operator: append(never(), token(permissionsNamespace, "kube-apiserver-auth-proxy")), impersonator: {impersonate("users", "alice@example.com"), impersonate("groups", "readers")}},
		},
		"controllers": {
			[]string{"--set", "apiServerProxyConfig.allowImpersonation=true"},
			map[string][]action{operator: append(controllers(), token(permissionsNamespace, "kube-apiserver-auth-proxy"))},
			map[string][]action{
				operator:     append(neverControllers(), impersonate("users", "alice@example.com"), impersonate("groups", "readers")),
				impersonator: append(never(), controllers()...),
			},
		},
		"controllers without impersonation and definitions": {
			[]string{"--set", "installCRDs=false"},
			map[string][]action{operator: controllers()},
			map[string][]action{operator: append(neverControllers(), token(permissionsNamespace, "kube-apiserver-auth-proxy"),
				action{Verb: "patch", Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions", Name: "proxygroups.tailscale.com"})},
		},
	} {
		t.Run(name, func(t *testing.T) {
			mustRun(t, r.upgrade(t.Context(), "permissions", permissionsNamespace, c.args...))
			r.check(t, c.can, true)
			r.check(t, c.not, false)
		})
	}
}

func (r *rig) check(t *testing.T, actions map[string][]action, want bool) {
	t.Helper()
	for user, list := range actions {
		for _, a := range list {
			if got := r.can(t, user, a); got != want {
				text, _ := json.Marshal(a)
				t.Errorf("%s can do %s: %t, want %t", user, text, got, want)
			}
		}
	}
}

func impersonate(resource, name string) action {
	return action{Verb: "impersonate", Resource: resource, Name: name}
}

// own is what the operator needs without controllers: its state.
func own() []action {
	const ns = permissionsNamespace
	return []action{
		{Verb: "get", Resource: "secrets", Namespace: ns, Name: "operator"},
		{Verb: "patch", Resource: "secrets", Namespace: ns, Name: "operator"},
	}
}

// controllers is what the operator needs for ProxyGroups, besides its state.
func controllers() []action {
	const ns = permissionsNamespace
	actions := []action{
		{Verb: "patch", Group: "tailscale.com", Resource: "proxygroups", Name: "a"},
		{Verb: "patch", Group: "tailscale.com", Resource: "proxygroups", Subresource: "status", Name: "a"},
		{Verb: "patch", Group: "tailscale.com", Resource: "proxyclasses", Subresource: "status", Name: "a"},
		{Verb: "update", Group: "tailscale.com", Resource: "proxygroups", Subresource: "finalizers", Name: "a"},
		{Verb: "patch", Group: "tailscale.com", Resource: "recorders", Name: "a"},
		{Verb: "patch", Group: "tailscale.com", Resource: "recorders", Subresource: "status", Name: "a"},
		{Verb: "update", Group: "tailscale.com", Resource: "recorders", Subresource: "finalizers", Name: "a"},
		{Verb: "get", Resource: "namespaces", Name: "kube-system"},
		{Verb: "create", Group: "events.k8s.io", Resource: "events", Namespace: "default"},
		{Verb: "create", Resource: "events", Namespace: ns},
		{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: ns, Name: "operator"},
	}
	watched := map[string]string{
		"secrets": "", "serviceaccounts": "", "services": "", "statefulsets": "apps", "poddisruptionbudgets": "policy",
		"roles": "rbac.authorization.k8s.io", "rolebindings": "rbac.authorization.k8s.io",
	}
	for _, verb := range []string{"list", "watch"} {
		actions = append(actions, action{Verb: verb, Resource: "nodes"}, action{Verb: verb, Resource: "pods", Namespace: ns},
			action{Verb: verb, Group: "tailscale.com", Resource: "proxygroups"}, action{Verb: verb, Group: "tailscale.com", Resource: "proxyclasses"},
			action{Verb: verb, Group: "tailscale.com", Resource: "recorders"})
	}
	for _, resource := range []string{"proxygroups", "proxyclasses", "recorders"} {
		actions = append(actions, action{Verb: "get", Group: "tailscale.com", Resource: resource})
	}
	for resource, group := range watched {
		actions = append(actions, action{Verb: "watch", Group: group, Resource: resource, Namespace: ns})
	}
	made := maps.Clone(watched)
	maps.Copy(made, map[string]string{"networkpolicies": "networking.k8s.io", "servicemonitors": "monitoring.coreos.com", "leases": "coordination.k8s.io"})
	for _, verb := range []string{"get", "list", "create", "patch", "delete"} {
		for resource, group := range made {
			actions = append(actions, action{Verb: verb, Group: group, Resource: resource, Namespace: ns})
		}
	}
	return actions
}

// never is what neither ServiceAccount may do without controllers.
func never() []action {
	const ns = permissionsNamespace
	return append(neverControllers(), []action{
		{Verb: "get", Resource: "secrets", Namespace: ns, Name: "operator-oauth"},
		{Verb: "list", Resource: "secrets", Namespace: ns},
		{Verb: "watch", Resource: "secrets", Namespace: ns},
		{Verb: "create", Resource: "secrets", Namespace: ns},
		{Verb: "update", Resource: "secrets", Namespace: ns, Name: "operator"},
		{Verb: "delete", Resource: "secrets", Namespace: ns, Name: "operator"},
		{Verb: "create", Resource: "events", Namespace: ns},
		{Verb: "list", Resource: "nodes"},
		{Verb: "get", Group: "tailscale.com", Resource: "proxygroups", Name: "a"},
		{Verb: "create", Group: "apps", Resource: "statefulsets", Namespace: ns},
		{Verb: "get", Group: "coordination.k8s.io", Resource: "leases", Namespace: ns, Name: "operator"},
	}...)
}

// neverControllers is what no ServiceAccount may do.
func neverControllers() []action {
	const ns = permissionsNamespace
	return []action{
		{Verb: "*", Group: "*", Resource: "*"},
		{Verb: "get", Resource: "secrets", Namespace: "kube-system", Name: "operator"},
		{Verb: "create", Resource: "secrets", Namespace: "kube-system"},
		{Verb: "update", Resource: "secrets", Namespace: ns, Name: "a-0"},
		{Verb: "delete", Group: "tailscale.com", Resource: "proxygroups", Name: "a"},
		{Verb: "delete", Group: "tailscale.com", Resource: "recorders", Name: "a"},
		{Verb: "get", Resource: "namespaces", Name: "default"},
		{Verb: "create", Group: "apps", Resource: "statefulsets", Namespace: "kube-system"},
		{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "roles", Namespace: "kube-system"},
		{Verb: "create", Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"},
		{Verb: "delete", Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions", Name: "proxygroups.tailscale.com"},
		{Verb: "patch", Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions", Name: "servicemonitors.monitoring.coreos.com"},
		{Verb: "get", Resource: "events", Namespace: "default"},
		{Verb: "escalate", Group: "rbac.authorization.k8s.io", Resource: "roles", Namespace: ns},
		{Verb: "bind", Group: "rbac.authorization.k8s.io", Resource: "roles", Namespace: ns},
		{Verb: "create", Resource: "pods", Namespace: ns},
		{Verb: "create", Resource: "pods", Subresource: "exec", Namespace: ns},
		token(ns, "default"),
		token("kube-system", "kube-apiserver-auth-proxy"),
		{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"},
		{Verb: "escalate", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
		{Verb: "bind", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
		{Verb: "update", Group: "rbac.authorization.k8s.io", Resource: "roles", Namespace: ns},
		{Verb: "update", Group: "apps", Resource: "deployments", Namespace: ns},
	}
}

// TestLeftAfterUninstall keeps what the documentation says of the state Secret true.
func TestLeftAfterUninstall(t *testing.T) {
	r := &rig{Cluster: kubernetes.New(t, kubernetes.Options{})}
	r.namespace(t, "state")
	mustRun(t, r.upgrade(t.Context(), "state", "state", "--set", "apiServerProxyConfig.mode=true"))
	// As the operator does.
	secrets := r.Client().CoreV1().Secrets("state")
	if _, err := secrets.Patch(t.Context(), "operator", types.MergePatchType, []byte(`{"data": {"_machinekey": "YQ=="}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	check := func(after string) {
		t.Helper()
		secret, err := secrets.Get(t.Context(), "operator", metav1.GetOptions{})
		if err != nil || string(secret.Data["_machinekey"]) != "a" {
			t.Fatalf("the device's state is gone after %s: %v, %v", after, secret, err)
		}
	}
	mustRun(t, r.upgrade(t.Context(), "state", "state", "--set", "apiServerProxyConfig.mode=noauth"))
	check("an upgrade")
	testStateMadeAgain(t, r)
	mustRun(t, r.Kubectl(t.Context(), "--namespace", "state", "patch", "secret", "operator", "--patch", `{"data": {"_machinekey": "YQ=="}}`))
	mustRun(t, r.uninstall(t.Context(), "state", "state"))
	check("uninstalling")
	mustRun(t, r.upgrade(t.Context(), "state", "state", "--set", "apiServerProxyConfig.mode=noauth"))
	check("installing again")
	mustRun(t, r.uninstall(t.Context(), "state", "state"))
	mustRun(t, r.upgrade(t.Context(), "other", "state", "--set", "apiServerProxyConfig.mode=noauth"))
	check("installing a release of another name")
	mustRun(t, r.uninstall(t.Context(), "other", "state"))
	check("uninstalling that")
	if _, err := r.Client().CoreV1().ServiceAccounts("state").Get(t.Context(), "operator", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the ServiceAccount is still there: %v", err)
	}
}

// testStateMadeAgain upgrades after somebody has deleted the Secret of the device's state, and the operator has made it
// again: it is none of helm's then, and in the manifest of the release before.
func testStateMadeAgain(t *testing.T, r *rig) {
	t.Helper()
	secrets := r.Client().CoreV1().Secrets("state")
	if err := secrets.Delete(t.Context(), "operator", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := tailnet.NewSecretStore(r.Client(), "state", "operator", slog.New(slog.DiscardHandler)).Load(t.Context(), func(error) {}); err != nil {
		t.Fatal(err)
	}
	made, err := secrets.Get(t.Context(), "operator", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"true", "noauth"} {
		mustRun(t, r.upgrade(t.Context(), "state", "state", "--set", "apiServerProxyConfig.mode="+mode))
		if now, err := secrets.Get(t.Context(), "operator", metav1.GetOptions{}); err != nil || now.UID != made.UID {
			t.Fatalf("the Secret that the operator made is gone after an upgrade: %v, %v", now, err)
		}
	}
}

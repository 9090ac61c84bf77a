// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/tailhelm/tailhelm/test/kubernetes"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// newNoAuthProxy makes a proxy in mode noauth whose kubeconfig is an
// administrator's: if any of its credentials were used, it would show.
func newNoAuthProxy(t *testing.T) *proxy {
	t.Helper()
	return newReadyProxy(t, proxyOptions{mode: "noauth", kubeconfig: shared.cluster.Kubeconfig()})
}

// serviceAccount makes a ServiceAccount in a namespace and returns its name to the
// API server and a token.
func serviceAccount(t *testing.T, namespace, name string) (user, token string) {
	t.Helper()
	ctx := within(t, patience)
	_, err := shared.cluster.Client().CoreV1().ServiceAccounts(namespace).Create(ctx,
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if token, err = shared.cluster.ServiceAccountToken(ctx, namespace, name); err != nil {
		t.Fatal(err)
	}
	return "system:serviceaccount:" + namespace + ":" + name, token
}

// eventsFrom are what the API server was asked from a caller's device.
func eventsFrom(t *testing.T, c *caller) []auditv1.Event {
	t.Helper()
	events, err := shared.cluster.AuditEvents(kubernetes.AuditFilter{Match: func(e *auditv1.Event) bool {
		return slices.Contains(e.SourceIPs, c.Addrs()[0].String())
	}})
	if err != nil {
		t.Fatal(err)
	}
	return events
}

// TestNoAuth: the client's own credentials decide, and no others are added.
func TestNoAuth(t *testing.T) {
	t.Parallel()
	p := newNoAuthProxy(t)
	// The grant is for mode auth, and must not count here.
	c := newUser(t, p, "system:masters")
	ns := newNamespace(t)
	account, token := serviceAccount(t, ns, "worker")
	boss, bossToken := serviceAccount(t, ns, "boss")
	bind(t, ns, "cluster-admin", rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: ns, Name: "worker"})
	if _, err := shared.cluster.Client().RbacV1().ClusterRoleBindings().Create(within(t, patience), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: ns},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: ns, Name: "boss"}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	path := "/api/v1/namespaces/" + ns + "/configmaps"

	// The API server's own refusals: they have its audit ID.
	for _, tc := range []struct {
		name   string
		header []string
		code   int
		word   string
	}{
		{"no credentials", nil, http.StatusForbidden, "system:anonymous"},
		{"a wrong token", []string{"Authorization", "Bearer unused"}, http.StatusUnauthorized, "Unauthorized"},
		{"a claim", []string{"X-Remote-User", "admin", "X-Remote-Group", "system:masters"}, http.StatusForbidden, "system:anonymous"},
		{"impersonation without right", []string{"Authorization", "Bearer " + token, "Impersonate-User", "admin"}, http.StatusForbidden, "cannot impersonate"},
	} {
		res, body := c.get(path, tc.header...)
		if res.StatusCode != tc.code || !strings.Contains(string(body), tc.word) || res.Header.Get("Audit-Id") == "" {
			t.Errorf("%s: %s %v\n%s", tc.name, res.Status, res.Header, body)
		}
	}

	c.kubeconfig = c.writeKubeconfig(token)
	if who, err := c.whoami(); err != nil || who.Username != account {
		t.Errorf("with a token, the user is %q (%v), want %q", who.Username, err, account)
	}
	c.mustKubectl("get", "configmaps", "-n", ns)
	if _, stderr, err := c.kubectl("get", "secrets", "-n", "default"); err == nil || !strings.Contains(stderr, account) {
		t.Errorf("get secrets as worker: %v\n%s", err, stderr)
	}

	c.kubeconfig = c.writeKubeconfig(bossToken)
	out := c.mustKubectl("auth", "whoami", "--as=somebody", "--as-group=some")
	if !strings.Contains(out, "somebody") || !strings.Contains(out, "[some system:authenticated]") {
		t.Errorf("auth whoami --as:\n%s", out)
	}
	if _, stderr, err := c.kubectl("get", "configmaps", "-n", ns, "--as=somebody"); err == nil || !strings.Contains(stderr, `User "somebody" cannot list`) {
		t.Errorf("get configmaps as somebody: %v\n%s", err, stderr)
	}

	if _, err := shared.cluster.WaitForAuditEvent(within(t, patience), kubernetes.AuditFilter{User: boss, ImpersonatedUser: "somebody", Verb: "list", Namespace: ns}); err != nil {
		t.Error(err)
	}
	seen := eventsFrom(t, c)
	if len(seen) == 0 {
		t.Error("the audit log has nothing of the caller's address")
	}
	for _, e := range seen {
		if e.User.Username != account && e.User.Username != boss && e.User.Username != "system:anonymous" && e.User.Username != "" {
			t.Errorf("%s %s was asked as %q", e.Verb, e.RequestURI, e.User.Username)
		}
		if e.ImpersonatedUser != nil && e.ImpersonatedUser.Username != "somebody" && e.ImpersonatedUser.Username != "admin" {
			t.Errorf("%s %s was asked on behalf of %q", e.Verb, e.RequestURI, e.ImpersonatedUser.Username)
		}
	}
	for _, line := range p.Log() {
		if strings.Contains(line, "eyJ") {
			t.Fatalf("a token in the log: %s", line)
		}
	}
}

// TestNoAuthPeersOnly: a device that has left the tailnet is served no more, whatever
// its token, and its watch ends.
func TestNoAuthPeersOnly(t *testing.T) {
	t.Parallel()
	p := newNoAuthProxy(t)
	ns := newNamespace(t)
	for name, leave := range map[string]func(*caller) error{
		"removed": func(c *caller) error { return c.proxy.tailnet.Remove(c.Name()) },
		"expired": func(c *caller) error { return c.proxy.tailnet.Expire(c.Name()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCaller(t, p, tailnet.Identity{})
			_, token := serviceAccount(t, ns, name)
			bind(t, ns, "cluster-admin", rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: ns, Name: name})
			path := "/api/v1/namespaces/" + ns + "/configmaps"
			if res, body := c.get(path, "Authorization", "Bearer "+token); res.StatusCode != http.StatusOK {
				t.Fatalf("before: %s\n%s", res.Status, body)
			}
			watch := c.request(within(t, patience), http.MethodGet, path+"?watch=1", nil, "Authorization", "Bearer "+token)
			res, err := c.HTTPClient().Do(watch)
			if err != nil || res.StatusCode != http.StatusOK {
				t.Fatalf("watch: %v %v", res, err)
			}
			defer func() { _ = res.Body.Close() }()

			if err := leave(c); err != nil {
				t.Fatal(err)
			}
			p.waitRequest(t, func(e logEntry) bool { return e.Kind == "watch" && e.Address == c.Addrs()[0].String() })
			asked := len(eventsFrom(t, c))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second) // no answer may come at all
			defer cancel()
			late, err := c.HTTPClient().Do(c.request(ctx, http.MethodGet, path, nil, "Authorization", "Bearer "+token))
			if err == nil {
				body, _ := io.ReadAll(late.Body) // what it says is told below
				_ = late.Body.Close()
				if late.StatusCode != http.StatusUnauthorized {
					t.Errorf("after: %s\n%s", late.Status, body)
				}
			}
			if now := eventsFrom(t, c); len(now) > asked+1 || (len(now) > asked && now[asked].Verb != "watch") {
				t.Errorf("the API server was asked after the device had left: %+v", now[asked:])
			}
		})
	}
	t.Run("who stays is served", func(t *testing.T) {
		t.Parallel()
		c := newCaller(t, p, tailnet.Identity{})
		c.kubeconfig = c.writeKubeconfig("")
		_, err := c.client().AuthenticationV1().SelfSubjectReviews().Create(within(t, patience), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "system:anonymous") {
			t.Errorf("got %v, want the API server's Forbidden", err)
		}
	})
}

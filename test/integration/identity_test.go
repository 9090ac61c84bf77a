// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"tailscale.com/tailcfg"

	"github.com/tailhelm/tailhelm/test/kubernetes"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

const (
	capability = tailcfg.PeerCapabilityKubernetes
	legacy     = "https://" + capability
)

// raw is a grant of one capability with the given values.
func raw(src string, name tailcfg.PeerCapability, values ...tailcfg.RawMessage) tailnet.Grant {
	return tailnet.Grant{Src: []string{src}, Dst: []string{proxyTag}, App: tailcfg.PeerCapMap{name: values}}
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	const authenticated = "system:authenticated" // from the API server
	groups := func(src string, names ...string) tailnet.Grant {
		return tailnet.KubernetesGrant(src, proxyTag, names...)
	}
	for name, tc := range map[string]struct {
		id     tailnet.Identity
		grants []tailnet.Grant
		want   []string
	}{
		"user without grant": {id: tailnet.Identity{Login: "plain@example.com"}, want: []string{authenticated}},
		"user with grants": {
			id:     tailnet.Identity{Login: "granted@example.com"},
			grants: []tailnet.Grant{groups("granted@example.com", "readers", "ops"), groups("granted@example.com", "ops", "tail:eng"), groups("other@example.com", "not-mine")},
			want:   []string{"readers", "ops", "tail:eng", authenticated},
		},
		"user with an empty grant": {
			id:     tailnet.Identity{Login: "empty@example.com"},
			grants: []tailnet.Grant{raw("empty@example.com", capability, `{}`, `{"impersonate":{}}`, `{"impersonate":{"groups":[]},"later":1}`)},
			want:   []string{authenticated},
		},
		"tagged without grant": {id: tailnet.Identity{Tags: []string{"tag:ci", "tag:bare"}}, want: []string{"tag:bare", "tag:ci", authenticated}},
		"tagged with grant": {
			id:     tailnet.Identity{Tags: []string{"tag:deploy"}},
			grants: []tailnet.Grant{groups("tag:deploy", "deployers")},
			want:   []string{"deployers", authenticated},
		},
		"legacy capability": {
			id:     tailnet.Identity{Login: "legacy@example.com"},
			grants: []tailnet.Grant{raw("legacy@example.com", legacy, `{"impersonate":{"groups":["old"]}}`)},
			want:   []string{"old", authenticated},
		},
		"both capabilities": {
			id:     tailnet.Identity{Login: "both@example.com"},
			grants: []tailnet.Grant{raw("both@example.com", legacy, `{"impersonate":{"groups":["old"]}}`), groups("both@example.com", "new")},
			want:   []string{"new", authenticated},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if len(tc.grants) > 0 {
				grant(t, shared.tailnet, tc.grants...)
			}
			c := newCaller(t, shared.proxy, tc.id)
			who, err := c.whoami()
			if err != nil {
				t.Fatal(err)
			}
			if who.Username != c.user {
				t.Errorf("the user is %q, want %q", who.Username, c.user)
			}
			if diff := cmp.Diff(tc.want, who.Groups); diff != "" {
				t.Errorf("groups (-want +got):\n%s", diff)
			}
		})
	}
}

func TestKubectlAuth(t *testing.T) {
	t.Parallel()
	c := newUser(t, shared.proxy, "kubectl-auth")
	ns := newNamespace(t, group("kubectl-auth"))
	out := c.mustKubectl("auth", "whoami")
	if !strings.Contains(out, c.user) || !strings.Contains(out, "[kubectl-auth system:authenticated]") {
		t.Errorf("auth whoami:\n%s", out)
	}
	if out := c.mustKubectl("auth", "can-i", "create", "pods", "-n", ns); strings.TrimSpace(out) != "yes" {
		t.Errorf("can-i create pods in %s: %s", ns, out)
	}
	if out, _, err := c.kubectl("auth", "can-i", "create", "pods", "-n", "default"); err == nil || strings.TrimSpace(out) != "no" {
		t.Errorf("can-i create pods elsewhere: %s (%v)", out, err)
	}
	_, stderr, err := c.kubectl("get", "secrets", "-n", "default")
	if err == nil || !strings.Contains(stderr, `User "`+c.user+`" cannot list resource "secrets"`) {
		t.Errorf("get secrets elsewhere: %v\n%s", err, stderr)
	}
}

func TestMalformedGrant(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		capability tailcfg.PeerCapability
		value      tailcfg.RawMessage
	}{
		"not an object":     {capability, `[]`},
		"groups not a list": {capability, `{"impersonate":{"groups":"system:masters"}}`},
		"legacy":            {legacy, `"system:masters"`},
		"group not a name":  {capability, `{"impersonate":{"groups":["two\nlines"]}}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			login := unique("malformed") + "@example.com"
			// A good grant first: the readable half must not count.
			grant(t, shared.tailnet, raw(login, tc.capability, `{"impersonate":{"groups":["good"]}}`, tc.value))
			c := newCaller(t, shared.proxy, tailnet.Identity{Login: login})
			_, err := c.whoami()
			if !apierrors.IsForbidden(err) {
				t.Fatalf("got %v, want Forbidden", err)
			}
			_, stderr, err := c.kubectl("get", "--raw", "/api/v1/namespaces")
			if err == nil || !strings.Contains(stderr, "value 1 of the capability \""+string(tc.capability)+"\"") || !strings.Contains(stderr, "administrator of the tailnet") {
				t.Errorf("kubectl: %v\n%s", err, stderr)
			}
			events, err := shared.cluster.AuditEvents(kubernetes.AuditFilter{ImpersonatedUser: login})
			if err != nil || len(events) > 0 {
				t.Errorf("the API server was asked: %v %v", events, err)
			}
		})
	}
}

// TestSystemMastersRefused: a grant of the group that may do everything makes nobody that, not even
// where the impersonator could.
func TestSystemMastersRefused(t *testing.T) {
	t.Parallel()
	c := newUser(t, shared.proxy, "system:masters")
	res, body := c.get("/api/v1/namespaces")
	if res.StatusCode != http.StatusForbidden || !strings.Contains(string(body), `which this proxy gives to nobody`) {
		t.Errorf("%s\n%s", res.Status, body)
	}
}

// TestFewerRights: a caller can work with some of its groups, and the API server decides by
// those.
func TestFewerRights(t *testing.T) {
	t.Parallel()
	p := newReadyProxy(t, proxyOptions{args: []string{"--allow-fewer-groups"}})
	c := newUser(t, p, admins, "fewer-rights")
	c.mustKubectl("get", "secrets", "--all-namespaces")
	for want, args := range map[string][]string{
		"[fewer-rights system:authenticated]": {"--as=" + c.user, "--as-group=fewer-rights"},
		"[system:authenticated]":              {"--as=" + c.user},
	} {
		if out := c.mustKubectl(append(args, "auth", "whoami")...); !strings.Contains(out, c.user) || !strings.Contains(out, want) {
			t.Errorf("kubectl %v auth whoami, want groups %s:\n%s", args, want, out)
		}
		_, stderr, err := c.kubectl(append(args, "get", "secrets", "--all-namespaces")...)
		if err == nil || !strings.Contains(stderr, `User "`+c.user+`" cannot list resource "secrets"`) {
			t.Errorf("kubectl %v get secrets: %v\n%s", args, err, stderr)
		}
	}
	_, stderr, err := c.kubectl("--as="+c.user, "--as-group=bosses", "get", "secrets")
	if err == nil || !strings.Contains(stderr, `You do not have the group "bosses"`) {
		t.Errorf("a group that was not granted: %v\n%s", err, stderr)
	}
}

// TestImpersonationRefused: a client that asks to be somebody else is told so, and
// the request goes nowhere.
func TestImpersonationRefused(t *testing.T) {
	t.Parallel()
	c := newUser(t, shared.proxy, admins) // who may impersonate
	c.mustKubectl("get", "namespaces")    // kubectl has discovered the API before
	for _, args := range [][]string{{"--as=boss"}, {"--as=boss", "--as-group=bosses"}, {"--as=boss", "--as-uid=1"}} {
		_, stderr, err := c.kubectl(append(args, "get", "namespaces")...)
		if err == nil || !strings.Contains(stderr, "This proxy impersonates you, ") || !strings.Contains(stderr, "--as") {
			t.Errorf("kubectl %v: %v\n%s", args, err, stderr)
		}
	}
	for _, header := range []string{"Impersonate-User", "impersonate-group", "Impersonate-Uid", "Impersonate-Extra-scopes", "Impersonate-Of-The-Future"} {
		res, body := c.get("/api/v1/namespaces", header, "boss")
		if res.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s\n%s", header, res.Status, body)
		}
	}
	for _, filter := range []kubernetes.AuditFilter{{ImpersonatedUser: "boss"}, {User: "boss"}} {
		if events, err := shared.cluster.AuditEvents(filter); err != nil || len(events) > 0 {
			t.Errorf("the API server was asked: %v %v", events, err)
		}
	}
}

// TestHeadersNeverIdentify: whatever a client says of itself, it is its device.
func TestHeadersNeverIdentify(t *testing.T) {
	t.Parallel()
	c := newUser(t, shared.proxy)
	ns := newNamespace(t)
	admin := shared.cluster.Client()
	ctx := within(t, patience)
	if _, err := admin.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: ns},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: ns, Name: "default"}},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := shared.cluster.ServiceAccountToken(ctx, ns, "default")
	if err != nil {
		t.Fatal(err)
	}
	c.kubeconfig = c.writeKubeconfig(token)
	who, err := c.whoami()
	if err != nil || who.Username != c.user {
		t.Errorf("with an administrator's token, the user is %q (%v), want %q", who.Username, err, c.user)
	}
	res, body := c.get("/api/v1/namespaces/"+ns+"/secrets",
		"Authorization", "Bearer "+token,
		"X-Remote-User", "admin", "X-Remote-Group", "system:masters", "X-Remote-Extra-Scopes", "all",
		"Tailscale-User-Login", "admin", "Tailscale-App-Capabilities", "{}",
		"X-Forwarded-For", "192.0.2.1", "X-Real-Ip", "192.0.2.2", "Forwarded", "for=192.0.2.3", "X-Forwarded-User", "admin")
	if res.StatusCode != http.StatusForbidden || !strings.Contains(string(body), `User \"`+c.user+`\" cannot list`) {
		t.Errorf("got %s\n%s", res.Status, body)
	}
	event, err := shared.cluster.WaitForAuditEvent(ctx, kubernetes.AuditFilter{Verb: "list", Namespace: ns, Resource: "secrets"})
	if err != nil {
		t.Fatal(err)
	}
	if event.User.Username != impersonatorUser || event.ImpersonatedUser == nil || event.ImpersonatedUser.Username != c.user {
		t.Errorf("user %q as %+v, want %q as %q", event.User.Username, event.ImpersonatedUser, impersonatorUser, c.user)
	}
	if want := []string{c.Addrs()[0].String(), "127.0.0.1"}; !slices.Equal(event.SourceIPs, want) {
		t.Errorf("sourceIPs %v, want %v", event.SourceIPs, want)
	}
}

// TestAuditTrail: the API server's own log tells who did what from where, and the
// proxy's log says the same under the same audit ID.
func TestAuditTrail(t *testing.T) {
	t.Parallel()
	c := newUser(t, shared.proxy, "audited")
	ns := newNamespace(t, group("audited"))
	ctx := within(t, patience)
	if _, err := c.client().CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "made"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	event, err := shared.cluster.WaitForAuditEvent(ctx, kubernetes.AuditFilter{Verb: "create", Resource: "configmaps", Namespace: ns, Name: "made"})
	if err != nil {
		t.Fatal(err)
	}
	if event.User.Username != impersonatorUser {
		t.Errorf("authenticated as %q, want %q", event.User.Username, impersonatorUser)
	}
	if as := event.ImpersonatedUser; as == nil || as.Username != c.user || !slices.Equal(as.Groups, []string{"audited", "system:authenticated"}) {
		t.Errorf("on behalf of %+v", as)
	}
	if event.SourceIPs[0] != c.Addrs()[0].String() {
		t.Errorf("from %v, want %v first", event.SourceIPs, c.Addrs()[0])
	}
	e := shared.proxy.waitRequest(t, func(e logEntry) bool { return e.AuditID == string(event.AuditID) })
	e.Seconds, e.Bytes = 0, 0
	want := logEntry{
		Msg: "request", User: c.user, Groups: []string{"audited"}, Node: c.FQDN(), Address: c.Addrs()[0].String(), Kind: "rest",
		Method: http.MethodPost, Verb: "create", Resource: "configmaps", Namespace: ns, Name: "", Code: http.StatusCreated, AuditID: string(event.AuditID),
	}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Errorf("the proxy's log (-want +got):\n%s", diff)
	}
	for _, line := range shared.proxy.Log() {
		if strings.Contains(line, "Bearer") || strings.Contains(line, "eyJ") {
			t.Fatalf("a token in the log: %s", line)
		}
	}
}

// TestGrantsChange: what a caller may do changes with the policy, on a connection
// that stays open.
func TestGrantsChange(t *testing.T) {
	t.Parallel()
	c := newUser(t, shared.proxy)
	client := c.client()
	has := func(groups ...string) func() bool {
		return func() bool {
			review, err := client.AuthenticationV1().SelfSubjectReviews().Create(within(t, patience), selfSubjectReview(), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return slices.Equal(review.Status.UserInfo.Groups, append(groups, "system:authenticated"))
		}
	}
	eventually(t, "no groups", has())
	first := grant(t, shared.tailnet, tailnet.KubernetesGrant(c.user, proxyTag, "first"))
	eventually(t, "the first group", has("first"))
	grant(t, shared.tailnet, tailnet.KubernetesGrant(c.user, proxyTag, "second"))
	eventually(t, "both groups", has("first", "second"))
	first()
	eventually(t, "the second group alone", has("second"))

	malformed := grant(t, shared.tailnet, raw(c.user, capability, `1`))
	eventually(t, "a refusal", func() bool {
		_, err := client.AuthenticationV1().SelfSubjectReviews().Create(within(t, patience), selfSubjectReview(), metav1.CreateOptions{})
		return apierrors.IsForbidden(err)
	})
	malformed()
	eventually(t, "the second group again", func() bool {
		review, err := client.AuthenticationV1().SelfSubjectReviews().Create(within(t, patience), selfSubjectReview(), metav1.CreateOptions{})
		return err == nil && slices.Contains(review.Status.UserInfo.Groups, "second")
	})
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"context"
	"io"
	"net/http"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/tailhelm/tailhelm/test/kubernetes"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// TestRevocation: what is open ends within revocationPromise when its caller is not
// any more who it was. What other callers have open goes on.
func TestRevocation(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(t *testing.T, c *caller)
		// silent is set when the device is cut off: then nothing reaches it, not
		// even the end of its streams, and it is for the API server that they end.
		silent bool
	}{
		"removed": {func(t *testing.T, c *caller) { noError(t, shared.tailnet.Remove(c.Name())) }, true},
		"expired": {func(t *testing.T, c *caller) { noError(t, shared.tailnet.Expire(c.Name())) }, true},
		"login": {func(t *testing.T, c *caller) {
			noError(t, shared.tailnet.SetIdentity(c.Name(), tailnet.Identity{Login: unique("other") + "@example.com"}))
		}, false},
		"groups": {func(t *testing.T, c *caller) {
			grant(t, shared.tailnet, tailnet.KubernetesGrant(c.user, proxyTag, unique("group")))
		}, false},
		"malformed": {func(t *testing.T, c *caller) { grant(t, shared.tailnet, raw(c.user, capability, `[]`)) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, ns, pod := owner(t, shared.proxy)
			other := newUser(t, shared.proxy)
			bind(t, ns, "cluster-admin", user(other.user))
			theirs, others := openAll(t, c, ns, pod), openAll(t, other, ns, pod)

			promise, cancel := context.WithTimeout(t.Context(), revocationPromise)
			defer cancel()
			tc.change(t, c)
			for _, open := range []struct{ kind, subresource, verb string }{{"watch", "", "watch"}, {"stream", "exec", ""}, {"stream", "portforward", ""}} {
				e := shared.proxy.waitRequestWithin(promise, t, func(e logEntry) bool {
					return e.User == c.user && e.Kind == open.kind && e.Subresource == open.subresource
				})
				if open.subresource == "" { // streams have no audit ID in their answer
					_, err := shared.cluster.WaitForAuditEvent(promise, auditOf(e))
					noError(t, err)
				} else {
					_, err := shared.cluster.WaitForAuditEvent(promise, kubernetes.AuditFilter{
						ImpersonatedUser: c.user, Subresource: open.subresource, Stage: "ResponseComplete",
					})
					noError(t, err)
				}
			}
			if !tc.silent {
				theirs.ended(promise, t)
			}
			others.alive(t)
		})
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open is one of each long-lived request, of one caller.
type open struct {
	namespace, name string // of what is watched
	watch           watch.Interface
	shell           *session
	forward         *session
	conn            io.ReadWriteCloser
	talk            func(text string)
}

// openAll opens a watch, an exec and a port-forward, and sees that they work.
func openAll(t *testing.T, c *caller, ns, pod string) *open {
	t.Helper()
	o := &open{namespace: ns, name: unique("watched")}
	o.watch = must[watch.Interface](t)(c.client().CoreV1().ConfigMaps(ns).Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + o.name}))
	t.Cleanup(o.watch.Stop)
	o.shell = c.start(protocols[0], "exec", "-n", ns, "-i", pod, "--", "cat")
	o.shell.ask("hello\n", "hello\n")
	session, conn := forward(t, c, protocols[1], ns, pod)
	o.forward, o.conn, o.talk = session, conn, func(text string) { echo(t, conn, text) }
	o.alive(t)
	return o
}

// alive sees that all of them work.
func (o *open) alive(t *testing.T) {
	t.Helper()
	direct := shared.cluster.Client().CoreV1().ConfigMaps(o.namespace)
	ctx := within(t, patience)
	must[*corev1.ConfigMap](t)(direct.Create(ctx, configMap(o.name), metav1.CreateOptions{}))
	noError(t, direct.Delete(ctx, o.name, metav1.DeleteOptions{}))
	for _, want := range []watch.EventType{watch.Added, watch.Deleted} {
		select {
		case e := <-o.watch.ResultChan():
			if e.Type != want {
				t.Fatalf("event %+v, want %s", e, want)
			}
		case <-ctx.Done():
			t.Fatalf("no event %s", want)
		}
	}
	word := unique("word")
	o.shell.say(word + "\n")
	o.shell.expect(word + "\n")
	o.talk(word)
}

// ended sees that the caller knows of their end.
func (o *open) ended(ctx context.Context, t *testing.T) {
	t.Helper()
	for more := true; more; {
		select {
		case _, more = <-o.watch.ResultChan():
		case <-ctx.Done():
			t.Fatal("the watch has not ended for its client")
		}
	}
	_ = o.shell.wait(ctx)   // with an error of kubectl's choice
	_ = o.forward.wait(ctx) // kubectl ends when its connection is lost
}

// TestRevokedFromTheStart: after a change the next request is another's at once, on
// a connection that was opened before.
func TestRevokedFromTheStart(t *testing.T) {
	t.Parallel()
	c := newUser(t, shared.proxy)
	if res, _ := c.get("/version"); res.StatusCode != http.StatusOK {
		t.Fatal(res.Status)
	}
	login := unique("successor") + "@example.com"
	noError(t, shared.tailnet.SetIdentity(c.Name(), tailnet.Identity{Login: login}))
	eventually(t, "the new user", func() bool {
		who, err := c.whoami()
		noError(t, err)
		return who.Username == login
	})
}

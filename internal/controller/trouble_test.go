// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// failure is a way in which the Tailscale API fails.
type failure struct {
	path   string
	fault  tailnet.Fault
	reason string // of TailscaleAPIAvailable, and a part of its message
	text   string
}

var failures = map[string]failure{
	"401":               {tailnet.PathAPI, tailnet.Fault{Status: http.StatusUnauthorized, Message: "API token invalid"}, "Unauthorized", "was not revoked"},
	"401 for the token": {tailnet.PathToken, tailnet.Fault{Status: http.StatusUnauthorized}, "Unauthorized", "check the ID and secret"},
	"403 for Services":  {"/api/v2/tailnet/-/vip-services", tailnet.Fault{Status: http.StatusForbidden}, "Forbidden", "the write scope services"},
	"403 for keys":      {tailnet.PathKeys, tailnet.Fault{Status: http.StatusForbidden}, "Forbidden", "the write scope auth_keys"},
	"429":               {tailnet.PathAPI, tailnet.Fault{Status: http.StatusTooManyRequests, RetryAfter: time.Second}, "RateLimited", "when the API allows"},
	"500":               {tailnet.PathAPI, tailnet.Fault{Status: http.StatusInternalServerError}, "Unavailable", "until the API answers"},
	"no answer":         {tailnet.PathAPI, tailnet.Fault{Delay: time.Hour}, "Unavailable", "did not answer within 30s"},
	"tags not owned":    {tailnet.PathKeys, tailnet.Fault{Status: http.StatusBadRequest, Message: "requested tags [tag:k8s] are invalid or not permitted"}, "Refused", "tagOwners"},
}

// A group that cannot be made says why and what to do, and is made when it can be.
func TestAPIFailsAtFirst(t *testing.T) {
	for name, f := range failures {
		t.Run(name, func(t *testing.T) {
			w := newWorldFailing(t, f)
			g := w.group(replicas(1))
			w.waitCondition(g, v1alpha1.TailscaleAPIAvailable, metav1.ConditionFalse, f.reason)
			w.waitCondition(g, v1alpha1.TailscaleAPIAvailable, metav1.ConditionFalse, f.text)
			w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "")
			w.event(g, "TailscaleAPIFailed", f.text)
			w.tailnet.ClearFaults()
			w.waitReady(g)
			w.waitCondition(g, v1alpha1.TailscaleAPIAvailable, metav1.ConditionTrue, "")
		})
	}
}

// newWorldFailing returns a world whose Tailscale API fails before the operator calls
// it.
func newWorldFailing(t *testing.T, f failure) *world {
	t.Helper()
	t.Parallel()
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	w := newWorldIn(t, shared.cluster, shared.client, tn)
	tn.Fail(f.path, f.fault)
	w.start()
	return w
}

// A group that serves goes on serving while the API fails, and says that it fails.
func TestAPIFailsLater(t *testing.T) {
	w := newWorld(t)
	g := w.group(replicas(1))
	w.waitReady(g)
	url := g.Status.URL
	for _, name := range []string{"401", "403 for Services", "429", "500"} {
		f := failures[name]
		w.tailnet.Fail(f.path, f.fault)
		w.waitCondition(g, v1alpha1.TailscaleAPIAvailable, metav1.ConditionFalse, f.reason)
		if c := condition(g, v1alpha1.ProxyGroupReady); c.Status != metav1.ConditionTrue || g.Status.URL != url {
			t.Errorf("%s: ready is %s (%s), url %q", name, c.Status, c.Message, g.Status.URL)
		}
		w.tailnet.ClearFaults()
		w.waitCondition(g, v1alpha1.TailscaleAPIAvailable, metav1.ConditionTrue, "")
	}
}

// What the API asks for is kept to, whatever happens in the cluster meanwhile.
func TestRateLimitIsKept(t *testing.T) {
	w := newWorldFailing(t, failure{path: tailnet.PathAPI, fault: tailnet.Fault{Status: http.StatusTooManyRequests, RetryAfter: time.Hour}})
	g := w.group(replicas(1))
	w.waitCondition(g, v1alpha1.TailscaleAPIAvailable, metav1.ConditionFalse, "RateLimited")
	calls := w.tailnet.Calls(tailnet.PathAPI)
	for i := range 5 {
		w.edit(g, replicas(int32(i+2)))
		w.waitCondition(g, v1alpha1.TailscaleAPIAvailable, metav1.ConditionFalse, "RateLimited")
	}
	if n := w.tailnet.Calls(tailnet.PathAPI) - calls; n > 0 {
		t.Errorf("%d more calls within the hour", n)
	}
}

// An operator without credentials for the API says so.
func TestNoAPI(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.API = nil })
	g := w.group()
	w.waitCondition(g, v1alpha1.TailscaleAPIAvailable, metav1.ConditionFalse, "set the chart's value oauth")
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "set the chart's value oauth")
	if err := w.client.Delete(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	w.waitGone(g) // it has nothing in the tailnet
}

// A group that is deleted while the API is down goes when it is back, and leaves
// nothing.
func TestDeletedWhileAPIIsDown(t *testing.T) {
	w := newWorld(t)
	g := w.group()
	w.waitReady(g)
	restore := w.tailnet.Fail(tailnet.PathAPI, tailnet.Fault{Status: http.StatusServiceUnavailable})
	if err := w.client.Delete(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	w.eventually("what is left, in a condition", func(context.Context) error {
		w.read(g)
		c := condition(g, v1alpha1.ProxyGroupReady)
		if c.Reason != reasonDeleting || !strings.Contains(c.Message, "Tailscale Service svc:"+g.Name) || !strings.Contains(c.Message, annotationAbandon) {
			return fmt.Errorf("%s: %s", c.Reason, c.Message)
		}
		return nil
	})
	w.event(g, "DeletionPending", "still in the tailnet")
	// The operator's restart forgets nothing.
	w.stop()
	w.start()
	restore()
	w.waitGone(g)
	w.checkNothingLeft(g)
}

// A person may leave in the tailnet what cannot be deleted.
func TestAbandoned(t *testing.T) {
	for name, give := range map[string]func(*world, *v1alpha1.ProxyGroup){
		"by annotation": func(w *world, g *v1alpha1.ProxyGroup) {
			w.edit(g, func(g *v1alpha1.ProxyGroup) { annotate(g, annotationAbandon, "true") })
		},
		"by time": func(w *world, _ *v1alpha1.ProxyGroup) {
			w.stop()
			w.config.timing.abandon = time.Millisecond
			w.start()
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			g := w.group(replicas(1))
			w.waitReady(g)
			device := g.Status.Tailnet.Devices[0]
			w.tailnet.Fail(tailnet.PathAPI, tailnet.Fault{Status: http.StatusForbidden})
			if err := w.client.Delete(t.Context(), g); err != nil {
				t.Fatal(err)
			}
			w.eventually("a try", func(context.Context) error {
				w.read(g)
				if c := condition(g, v1alpha1.ProxyGroupReady); !strings.Contains(c.Message, "still in the tailnet") {
					return fmt.Errorf("%s: %s", c.Reason, c.Message)
				}
				return nil
			})
			give(w, g)
			w.waitGone(g)
			w.event(g, "TailnetObjectsAbandoned", "device "+device)
			w.event(g, "TailnetObjectsAbandoned", "Tailscale Service svc:"+g.Name)
			w.eventually("nothing left in the cluster", func(ctx context.Context) error {
				if left := w.left(ctx, g); len(left) > 0 {
					return fmt.Errorf("%v", left)
				}
				return nil
			})
			w.tailnet.ClearFaults()
		})
	}
}

// A pod that never ends does not keep a group for ever.
func TestDeletedWithAPodThatHangs(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.timing.drain = time.Second })
	g := w.group(replicas(1))
	w.waitReady(g)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: g.Name + "-0", Namespace: w.namespace}}
	w.read(pod)
	base := pod.DeepCopy()
	pod.Finalizers = []string{"example.com/dead-node"}
	if err := w.client.Patch(t.Context(), pod, client.MergeFrom(base)); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Delete(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	w.waitGone(g)
	w.read(pod)
	base = pod.DeepCopy()
	pod.Finalizers = nil
	if err := w.client.Patch(t.Context(), pod, client.MergeFrom(base)); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	w.checkNothingLeft(g)
}

// What replicas say they lack is a condition of its own, with what to do, and a group
// whose replicas are not ready has no URL.
func TestChecksBecomeConditions(t *testing.T) {
	w := newWorld(t)
	w.kubelet.report(map[string]string{"service": "the tailnet has not approved this device", "certificate": "HTTPS is disabled: enable it in the admin console"})
	g := w.group(replicas(1))
	w.waitCondition(g, v1alpha1.ServiceApproved, metav1.ConditionFalse, `"autoApprovers": {"services": {"svc:`+g.Name+`": ["tag:k8s"]}}`)
	w.waitCondition(g, v1alpha1.CertificateReady, metav1.ConditionFalse, "replica 0: HTTPS is disabled: enable it in the admin console")
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "0/1 replicas are ready; replica 0: certificate: HTTPS is disabled")
	w.waitCondition(g, v1alpha1.ProxyGroupAvailable, metav1.ConditionTrue, "1/1 ProxyGroup pods running")
	w.waitCondition(g, v1alpha1.KubeAPIServerProxyConfigured, metav1.ConditionFalse, "0/1")
	if g.Status.URL != "" {
		t.Errorf("url %s", g.Status.URL)
	}
	w.kubelet.report(map[string]string{"service": "the tailnet has not approved this device"})
	w.waitCondition(g, v1alpha1.CertificateReady, metav1.ConditionTrue, "")
	w.kubelet.report(nil)
	w.waitReady(g)
	w.waitCondition(g, v1alpha1.ServiceApproved, metav1.ConditionTrue, "")
}

// State of a pod that is gone counts for nothing.
func TestStaleStateCountsForNothing(t *testing.T) {
	w := newWorld(t)
	g := w.group(replicas(1))
	w.waitReady(g)
	w.kubelet.stop()
	if err := w.client.DeleteAllOf(t.Context(), &corev1.Pod{}, client.InNamespace(w.namespace)); err != nil {
		t.Fatal(err)
	}
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionFalse, "0/1 replicas are ready")
	w.waitCondition(g, v1alpha1.ProxyGroupAvailable, metav1.ConditionFalse, "0/1 ProxyGroup pods running")
	w.waitCondition(g, v1alpha1.ServiceApproved, metav1.ConditionUnknown, "")
	if len(g.Status.Devices) > 0 || g.Status.URL != "" {
		t.Errorf("devices %v, url %q", g.Status.Devices, g.Status.URL)
	}
}

// Of two operators one works; when it ends, the other does.
func TestLeaderElection(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.LeaderElectionID = "operator" })
	g := w.group(replicas(1))
	w.waitReady(g)
	first := w.stop
	w.start() // a second one
	first()
	w.edit(g, replicas(2))
	w.waitReady(g)
	if n := len(w.devices(t.Context())); n != 2 {
		t.Errorf("%d devices", n)
	}
}

// A changed or deleted object of a group comes back.
func TestObjectsAreRepaired(t *testing.T) {
	w := newWorld(t)
	g := w.group(replicas(1))
	w.waitReady(g)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: g.Name, Namespace: w.namespace}}
	if err := w.client.Delete(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	set := w.statefulSet(g)
	base := set.DeepCopy()
	set.Spec.Replicas = ptr.To[int32](7)
	if err := w.client.Patch(t.Context(), set, client.MergeFrom(base)); err != nil {
		t.Fatal(err)
	}
	w.eventually("repair", func(ctx context.Context) error {
		if !w.exists(ctx, account, g.Name) || *w.statefulSet(g).Spec.Replicas != 1 {
			return fmt.Errorf("replicas %d", *w.statefulSet(g).Spec.Replicas)
		}
		return nil
	})
}

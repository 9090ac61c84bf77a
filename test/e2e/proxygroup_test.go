// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tailhelm/tailhelm/test/e2e/framework"
)

// groups are the examples with ProxyGroups, and who calls each group.
var groups = map[string]map[string]permutation{
	"ha-auth":           {"my-cluster": {}},
	"ha-noauth":         {"my-cluster": {callers: tokens}},
	"ha-and-in-process": {"my-cluster": {}, "my-cluster-tools": {callers: tokens}},
}

// withdrawDelay is enough here, in seconds: the test's control server tells clients at once.
const withdrawDelay = "5"

// TestProxyGroups installs each example with ProxyGroups, uses the names that the
// replicas serve together, upgrades it, and uninstalls it. The examples share their names,
// so that one follows the other.
func TestProxyGroups(t *testing.T) {
	t.Parallel()
	for example, names := range groups {
		t.Run(example, func(t *testing.T) {
			r := suite.NewRelease(t, example, nil)
			r.Files = []string{example}
			oauth(t, r)
			r.Switches["workloads.withdrawDelaySeconds"] = withdrawDelay
			r.Upgrade(t)
			for name, p := range names {
				waitGroup(t, name)
				checkSelectors(t, r, "")
				framework.Use(t, example+"-"+name, callersAt(t, name+"."+suite.Tailnet.Domain(), p))
			}
			upgradeGroups(t, r, names)
			r.Uninstall(t)
			framework.Wait(t, "every device to be gone", func(context.Context) bool { return len(devicesOf(r, names)) == 0 })
			if services := suite.Tailnet.Services(); len(services) > 0 {
				t.Errorf("after helm uninstall the tailnet still has %+v", services)
			}
		})
	}
}

// waitGroup waits until a ProxyGroup is ready.
func waitGroup(t *testing.T, name string) {
	t.Helper()
	waitCondition(t, "proxygroup/"+name, "ProxyGroupReady=true")
}

// waitCondition waits until an object without namespace has a condition.
func waitCondition(t *testing.T, object, condition string) {
	t.Helper()
	out, err := suite.Kubectl(t.Context(), "wait", object, "--for=condition="+condition, "--timeout=5m").CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl wait: %v\n%s", err, out)
	}
}

// waitReplaced waits until every pod of a group or a recorder has an annotation.
func waitReplaced(t *testing.T, r *framework.Release, name, annotation string) {
	t.Helper()
	selector := metav1.ListOptions{LabelSelector: "tailscale.com/parent-resource=" + name}
	framework.Wait(t, "every pod of "+name+" to be replaced", func(ctx context.Context) bool {
		list, err := suite.Kube.CoreV1().Pods(r.Namespace).List(ctx, selector)
		return err == nil && len(list.Items) > 0 && !slices.ContainsFunc(list.Items, func(pod corev1.Pod) bool {
			return pod.Annotations[annotation] == "" || pod.DeletionTimestamp != nil
		})
	})
}

// devicesOf are the IDs of the devices of a release: its operator's, and those of the replicas
// of its groups. Other releases have devices with the same tags at the same time.
func devicesOf(r *framework.Release, names map[string]permutation) []string {
	var ids []string
	for _, d := range r.Devices() {
		ids = append(ids, d.ID)
	}
	for _, d := range suite.Tailnet.Devices() {
		i := strings.LastIndexByte(d.Hostname, '-')
		if _, isReplica := names[d.Hostname[:max(i, 0)]]; isReplica {
			ids = append(ids, d.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

// upgradeGroups changes a value that replaces every replica, and checks that the groups
// come back as the same devices, with the same certificates.
func upgradeGroups(t *testing.T, r *framework.Release, names map[string]permutation) {
	t.Helper()
	orders := func() (n int) {
		for name := range names {
			n += suite.Tailnet.CertificateOrders(name + "." + suite.Tailnet.Domain())
		}
		return n
	}
	devices, ordered := devicesOf(r, names), orders()
	const annotation = "upgraded"
	r.Values["workloads.podAnnotations."+annotation] = "yes"
	r.Upgrade(t)
	for name, p := range names {
		waitReplaced(t, r, name, annotation)
		waitGroup(t, name)
		for _, c := range callersAt(t, name+"."+suite.Tailnet.Domain(), p) {
			c.CheckIdentity(t)
		}
	}
	if after := devicesOf(r, names); !slices.Equal(after, devices) {
		t.Errorf("after an upgrade the devices are %q, before it they were %q", after, devices)
	}
	if n := orders(); n != ordered {
		t.Errorf("the upgrade ordered %d certificates", n-ordered)
	}
}

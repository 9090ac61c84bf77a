// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tailhelm/tailhelm/test/e2e/framework"
	"github.com/tailhelm/tailhelm/test/load"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

const (
	// groupName is the ProxyGroup's name in its documentation.
	groupName = "my-cluster"
	// loadName is the name of the load's ConfigMap.
	loadName = "load"
	// readyWithin is how long a group may take from kubectl apply to ready.
	readyWithin = 30 * time.Second
	// resumesWithin is how long requests may fail after the control server has noticed that
	// a replica is gone.
	resumesWithin = 2 * time.Second
)

// phase is what a disruption did to the load.
type phase struct {
	load.Figures
	// Replicas is how many the group had before.
	Replicas int `json:"replicas"`
	// Moved: the Service went to another replica.
	Moved bool `json:"moved"`
	// ResumedMS is, after a crash, the time from the control server's notice to the next
	// request that ended well.
	ResumedMS float64 `json:"resumedMs,omitempty"`
}

// measured is what TestAvailability measures.
type measured struct {
	ReadySeconds   float64   `json:"readySeconds"`
	FirstRequestMS float64   `json:"firstRequestMs"`
	RequestsMS     []float64 `json:"requestsMs"`
	Phases         []phase   `json:"phases"`
}

// availability is a ProxyGroup under load.
type availability struct {
	t        *testing.T
	release  *framework.Release
	values   string // file
	caller   *framework.Caller
	load     *load.Load
	replicas int
	upgrades int
	measured measured
}

// TestAvailability replaces, evicts and kills the replicas of a ProxyGroup, two and then
// three, while a client uses it without pause. When replicas end in order, the client does
// not notice. When one is killed, the client goes on as soon as the control server knows.
func TestAvailability(t *testing.T) {
	a := newAvailability(t)
	defer a.report()
	a.create()
	a.start()
	defer a.load.Stop()

	a.graceful("rolling upgrade", a.upgrade)
	a.graceful("delete the standby", func() { a.deletePod(a.standby()) })
	a.graceful("delete the active replica", func() { a.deletePod(a.active()) })
	a.graceful("drain the node", a.drain)
	a.crash("kill the active replica")
	a.graceful("scale to 3", func() { a.scale(3) })
	a.graceful("rolling upgrade", a.upgrade)
	a.graceful("delete the active replica", func() { a.deletePod(a.active()) })
	a.graceful("drain the node", a.drain)
	a.crash("kill the active replica")
	a.graceful("scale to 1", func() { a.scale(1) })
	a.graceful("scale to 3", func() { a.scale(3) })
}

// newAvailability installs the operator.
func newAvailability(t *testing.T) *availability {
	t.Helper()
	a := &availability{t: t, release: suite.NewRelease(t, "availability", nil), values: filepath.Join(t.TempDir(), "values.yaml")}
	a.release.Files = []string{a.values}
	oauth(t, a.release)
	a.install()
	return a
}

// install installs or upgrades the release. Each time pods get another annotation. The
// test's control server tells clients in milliseconds, so that they need less time to
// notice than by default. The stream on a replica that ends lasts until the drain timeout.
func (a *availability) install() {
	a.t.Helper()
	values := fmt.Sprintf("apiServerProxyConfig: {allowImpersonation: true}\nworkloads: {withdrawDelaySeconds: 5, drainTimeoutSeconds: 10, podAnnotations: {upgrade: %q}}\n", fmt.Sprint(a.upgrades))
	if err := os.WriteFile(a.values, []byte(values), 0o600); err != nil {
		a.t.Fatal(err)
	}
	a.release.Upgrade(a.t)
}

// report prints what was measured, and keeps it as an artifact.
func (a *availability) report() {
	a.t.Logf("ready %.1f s after kubectl apply; the first request took %.0f ms, ten in turn %.0f ms", a.measured.ReadySeconds, a.measured.FirstRequestMS, a.measured.RequestsMS)
	for _, p := range a.measured.Phases {
		a.t.Logf("%d replicas: %s; moved: %t; resumed after %.0f ms", p.Replicas, p.Figures, p.Moved, p.ResumedMS)
	}
	path, err := framework.KeepArtifact("availability.json", a.measured)
	if err != nil {
		a.t.Error(err)
	}
	a.t.Logf("figures: %s", path)
}

var manifest = regexp.MustCompile("(?s)\n *```yaml\n( *apiVersion: tailscale.com/v1alpha1\n *kind: ProxyGroup\n.*?)\n *```\n")

// create applies the manifest of the documentation, and waits until the group is ready.
func (a *availability) create() {
	a.t.Helper()
	docs, err := os.ReadFile(framework.Root + "/docs/proxygroup.md")
	if err != nil {
		a.t.Fatal(err)
	}
	found := manifest.FindSubmatch(docs)
	if found == nil {
		a.t.Fatal("the documentation has no manifest of a ProxyGroup")
	}
	file := filepath.Join(a.t.TempDir(), "proxygroup.yaml")
	if err := os.WriteFile(file, found[1], 0o600); err != nil {
		a.t.Fatal(err)
	}
	a.replicas = 2
	begin := time.Now()
	a.kubectl("apply", "--filename="+file)
	a.t.Cleanup(func() { a.remove() })
	a.waitReady()
	ready := time.Since(begin)
	a.measured.ReadySeconds = ready.Seconds()
	if ready > readyWithin {
		a.t.Errorf("ready after %s, want within %s", ready, readyWithin)
	}
}

// remove deletes the group. The test's own context has ended.
func (a *availability) remove() {
	out, err := suite.Kubectl(context.WithoutCancel(a.t.Context()), "delete", "proxygroup", groupName, "--timeout=3m").CombinedOutput()
	if err != nil {
		a.t.Errorf("kubectl delete: %v\n%s", err, out)
	}
}

// kubectl runs kubectl as an administrator.
func (a *availability) kubectl(args ...string) {
	a.t.Helper()
	if out, err := suite.Kubectl(a.t.Context(), args...).CombinedOutput(); err != nil {
		a.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (a *availability) waitReady() {
	a.t.Helper()
	a.kubectl("wait", "proxygroup/"+groupName, "--for=condition=ProxyGroupReady=true", "--timeout=3m")
}

// start asks ten times in turn, each on a new connection, and begins the load.
func (a *availability) start() {
	t := a.t
	t.Helper()
	callers, err := suite.Callers(t.Context(), groupName+"."+suite.Tailnet.Domain())
	if err != nil {
		t.Fatal(err)
	}
	a.caller = callers[0]
	config, err := a.caller.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		took, err := load.Once(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		a.measured.RequestsMS = append(a.measured.RequestsMS, float64(took.Microseconds())/1000)
	}
	a.measured.FirstRequestMS = a.measured.RequestsMS[0]
	maps := suite.Kube.CoreV1().ConfigMaps(framework.Work)
	forget := func() {
		if err := maps.Delete(context.WithoutCancel(t.Context()), loadName, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	}
	forget() // of an earlier run
	t.Cleanup(forget)
	a.load, err = load.Start(t.Context(), load.Config{
		Client: config, Namespace: framework.Work, Name: loadName, Rate: 20, Watches: 20, Stream: a.caller.Cat,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// pods are the group's, by name.
func (a *availability) pods(ctx context.Context) []corev1.Pod {
	list, err := suite.Kube.CoreV1().Pods(a.release.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "tailscale.com/parent-resource=" + groupName})
	if err != nil {
		a.t.Errorf("pods of %s: %v", groupName, err)
		return nil
	}
	slices.SortFunc(list.Items, func(x, y corev1.Pod) int { return strings.Compare(x.Name, y.Name) })
	return list.Items
}

// active returns the pod to which the tailnet sends clients. Pods have their devices' names.
func (a *availability) active() corev1.Pod {
	a.t.Helper()
	var name string
	ctx, cancel := context.WithTimeout(a.t.Context(), time.Minute)
	defer cancel()
	if err := suite.Tailnet.WaitService(ctx, "svc:"+groupName, func(s tailnet.ServiceStatus) bool { name = s.Active; return name != "" }); err != nil {
		a.t.Fatal(err)
	}
	return a.pod(func(p corev1.Pod) bool { return p.Name == name })
}

// standby returns the first other one.
func (a *availability) standby() corev1.Pod {
	a.t.Helper()
	active := a.active()
	return a.pod(func(p corev1.Pod) bool { return p.Name != active.Name })
}

func (a *availability) pod(is func(corev1.Pod) bool) corev1.Pod {
	a.t.Helper()
	pods := a.pods(a.t.Context())
	i := slices.IndexFunc(pods, is)
	if i < 0 {
		a.t.Fatalf("no such pod among %d", len(pods))
	}
	return pods[i]
}

// settle waits until the group has all its replicas, ready and known to the tailnet, and
// is says so of each.
func (a *availability) settle(is func(corev1.Pod) bool) {
	a.t.Helper()
	framework.Wait(a.t, fmt.Sprintf("%d replicas to be ready", a.replicas), func(ctx context.Context) bool {
		pods := a.pods(ctx)
		for _, p := range pods {
			if !framework.PodReady(&p) || !is(p) {
				return false
			}
		}
		return len(pods) == a.replicas
	})
	ctx, cancel := context.WithTimeout(a.t.Context(), time.Minute)
	defer cancel()
	if err := suite.Tailnet.WaitService(ctx, "svc:"+groupName, func(s tailnet.ServiceStatus) bool { return len(s.Advertising) == a.replicas }); err != nil {
		a.t.Fatal(err)
	}
	a.waitReady()
}

func anyPod(corev1.Pod) bool { return true }

// disrupt runs a phase of the load.
func (a *availability) disrupt(name string, run func()) (p phase, moved bool) {
	a.t.Helper()
	before := a.active()
	p.Replicas = a.replicas
	run()
	ctx, cancel := context.WithTimeout(a.t.Context(), time.Minute)
	defer cancel()
	figures, err := a.load.Cut(ctx, name)
	if err != nil {
		a.t.Fatalf("%s: %v", name, err)
	}
	after := a.active()
	p.Figures, p.Moved = figures, after.UID != before.UID || restarts(after) != restarts(before)
	return p, p.Moved
}

func restarts(p corev1.Pod) int32 { return p.Status.ContainerStatuses[0].RestartCount }

// graceful is a phase of which clients notice nothing.
func (a *availability) graceful(name string, run func()) {
	a.t.Helper()
	p, moved := a.disrupt(name, run)
	a.measured.Phases = append(a.measured.Phases, p)
	if p.Requests == 0 || p.Failed > 0 || p.FailedAttempts > 0 || p.WatchesBroken > 0 || p.WatchesLost > 0 || p.EventsLost > 0 || !moved && !p.StreamLives {
		a.t.Errorf("%d replicas: clients have noticed: %s; moved: %t\n%s", p.Replicas, p.Figures, moved, strings.Join(p.Errors, "\n"))
	}
}

// crash kills the active replica: clients go on when the control server has noticed.
func (a *availability) crash(name string) {
	a.t.Helper()
	var resumed time.Duration
	p, _ := a.disrupt(name, func() {
		killed := a.active()
		if err := a.release.Kill(a.t.Context(), &killed); err != nil {
			a.t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(a.t.Context(), time.Minute)
		defer cancel()
		if err := suite.Tailnet.WaitService(ctx, "svc:"+groupName, func(s tailnet.ServiceStatus) bool { return s.Active != killed.Name }); err != nil {
			a.t.Fatal(err)
		}
		noticed := time.Now()
		var err error
		if resumed, err = a.load.FirstSuccess(ctx, noticed); err != nil {
			a.t.Fatal(err)
		}
		a.settle(func(p corev1.Pod) bool { return p.UID != killed.UID || restarts(p) > restarts(killed) })
	})
	p.ResumedMS = float64(resumed.Microseconds()) / 1000
	a.measured.Phases = append(a.measured.Phases, p)
	if resumed > resumesWithin || p.WatchesLost > 0 || p.EventsLost > 0 {
		a.t.Errorf("%d replicas: %s; resumed after %s, want within %s\n%s", p.Replicas, p.Figures, resumed, resumesWithin, strings.Join(p.Errors, "\n"))
	}
}

// upgrade replaces all pods, one after the other, by helm upgrade.
func (a *availability) upgrade() {
	a.t.Helper()
	a.upgrades++
	a.install()
	a.settle(func(p corev1.Pod) bool { return p.Annotations["upgrade"] == fmt.Sprint(a.upgrades) })
}

// deletePod is kubectl delete pod.
func (a *availability) deletePod(pod corev1.Pod) {
	a.t.Helper()
	a.kubectl("delete", "pod", "--namespace="+pod.Namespace, pod.Name)
	a.settle(func(p corev1.Pod) bool { return p.UID != pod.UID })
}

// drain empties the node without control plane, and gives it back.
func (a *availability) drain() {
	a.t.Helper()
	control, err := suite.ControlPlane()
	if err != nil {
		a.t.Fatal(err)
	}
	pod := a.pod(func(p corev1.Pod) bool { return p.Spec.NodeName != control.String() })
	a.t.Cleanup(func() { cordon(a.t, pod.Spec.NodeName, false) })
	a.kubectl("drain", pod.Spec.NodeName, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=3m")
	a.settle(func(p corev1.Pod) bool { return p.Spec.NodeName == control.String() })
	cordon(a.t, pod.Spec.NodeName, false)
}

// scale changes the number of replicas.
func (a *availability) scale(replicas int) {
	a.t.Helper()
	a.replicas = replicas
	a.kubectl("patch", "proxygroup", groupName, "--type=merge", fmt.Sprintf(`--patch={"spec":{"replicas":%d}}`, replicas))
	a.settle(anyPod)
}

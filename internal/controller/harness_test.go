// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	tailscale "tailscale.com/client/tailscale/v2"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/tailapi"
	"github.com/tailhelm/tailhelm/internal/workload"
	"github.com/tailhelm/tailhelm/test/kubernetes"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

const (
	tagK8s       = "tag:k8s"
	impersonator = "kube-apiserver-auth-proxy"
)

var serial atomic.Int64 // makes names unique

// world is a namespace with an operator, and a tailnet.
type world struct {
	t         *testing.T
	cluster   *kubernetes.Cluster
	client    client.Client
	namespace string
	tailnet   *tailnet.Tailnet
	// admin is what a person does in the admin console.
	admin   *tailscale.Client
	oauthID string // of the operator's client
	config  Config
	stop    func() // stops the operator and returns when it has ended; nil while none runs
	kubelet *kubelet
}

// newWorld returns a world on the shared cluster, whose operator runs.
func newWorld(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	t.Parallel()
	w := newWorldIn(t, shared.cluster, shared.client, tailnet.New(t, tailnet.Options{NoHTTPS: true}), change...)
	w.start()
	return w
}

// newWorldIn returns a world whose operator does not run yet.
func newWorldIn(t *testing.T, cluster *kubernetes.Cluster, c client.Client, tn *tailnet.Tailnet, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, cluster: cluster, client: c, tailnet: tn, namespace: fmt.Sprintf("operator-%d", serial.Add(1))}
	w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.namespace}})
	w.create(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: impersonator, Namespace: w.namespace}})
	dir := t.TempDir()
	id, secret := tn.OAuthClient(tagK8s)
	w.oauthID = id
	w.write(dir, id, secret)
	w.admin = &tailscale.Client{BaseURL: baseURL(tn), Auth: adminAuth(tn)}
	w.config = Config{
		API:     tailapi.New(tailapi.Credentials{BaseURL: tn.URL(), ClientIDFile: filepath.Join(dir, "id"), ClientSecretFile: filepath.Join(dir, "secret")}),
		Cluster: cluster.Config(), Impersonator: impersonator, Log: slog.New(slog.NewTextHandler(testLog{t}, nil)),
		LoginServer: tn.URL(), Namespace: w.namespace, Operator: w.namespace + "/operator", Release: "operator", Tags: []string{tagK8s}, WorkloadsDir: shared.workloads, timing: quick,
	}
	for _, f := range change {
		f(&w.config)
	}
	w.kubelet = startKubelet(w)
	t.Cleanup(w.cleanup)
	return w
}

// testLog is a log of a test. What comes after the test's end is dropped.
type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

func (w *world) write(dir, id, secret string) {
	w.t.Helper()
	for name, content := range map[string]string{"id": id, "secret": secret} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
}

// adminAuth is a person's access to the Tailscale API.
func adminAuth(tn *tailnet.Tailnet) tailscale.Auth {
	id, secret := tn.OAuthClient(tagK8s)
	return &tailscale.OAuth{ClientID: id, ClientSecret: secret}
}

// start starts the operator.
func (w *world) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		New(w.config).Run(ctx)
	}()
	w.stop = func() {
		cancel()
		<-done
		w.stop = nil
	}
}

// cleanup deletes all groups and recorders and stops the operator.
func (w *world) cleanup() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if w.t.Failed() {
		w.dump(ctx)
	}
	if w.stop != nil {
		w.stop()
	}
	w.kubelet.stop()
	for _, g := range w.parents(ctx) {
		base := copyOf(g)
		g.SetFinalizers(nil)
		if err := w.client.Patch(ctx, g, client.MergeFrom(base)); client.IgnoreNotFound(err) != nil {
			w.t.Error(err)
		}
		if err := w.client.Delete(ctx, g); client.IgnoreNotFound(err) != nil {
			w.t.Error(err)
		}
	}
}

// parents returns the groups and recorders of the world's operator.
func (w *world) parents(ctx context.Context) []parent {
	var groups v1alpha1.ProxyGroupList
	var recorders v1alpha1.RecorderList
	for _, list := range []client.ObjectList{&groups, &recorders} {
		if err := w.client.List(ctx, list); err != nil {
			w.t.Error(err)
		}
	}
	var own []parent
	add := func(object parent) {
		if object.GetAnnotations()[annotationOperator] == w.config.Operator {
			own = append(own, object)
		}
	}
	for i := range groups.Items {
		add(&groups.Items[i])
	}
	for i := range recorders.Items {
		add(&recorders.Items[i])
	}
	return own
}

// dump logs the groups and recorders as they are.
func (w *world) dump(ctx context.Context) {
	for _, g := range w.parents(ctx) {
		status := g.ReplicaStatus()
		for _, c := range status.Conditions {
			w.t.Logf("%s: %s=%s %s: %s", g.GetName(), c.Type, c.Status, c.Reason, c.Message)
		}
		w.t.Logf("%s: devices %v, in the tailnet %v", g.GetName(), status.Devices, status.Tailnet)
	}
}

// eventually waits until check returns nil.
func (w *world) eventually(what string, check func(context.Context) error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var last error
	err := wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		last = check(ctx)
		return last == nil, nil
	})
	if err != nil {
		w.t.Fatalf("%s: %v", what, last)
	}
}

func (w *world) create(object client.Object) {
	w.t.Helper()
	if err := w.client.Create(context.Background(), object); err != nil {
		w.t.Fatal(err)
	}
}

// group makes a ProxyGroup with a unique name.
func (w *world) group(change ...func(*v1alpha1.ProxyGroup)) *v1alpha1.ProxyGroup {
	w.t.Helper()
	g := &v1alpha1.ProxyGroup{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("kube-%d", serial.Add(1)), Annotations: map[string]string{annotationOperator: w.config.Operator}},
		Spec:       v1alpha1.ProxyGroupSpec{Type: v1alpha1.ProxyGroupTypeKubernetesAPIServer, Replicas: ptr.To[int32](2)},
	}
	for _, f := range change {
		f(g)
	}
	w.create(g)
	return g
}

// edit changes a group, as kubectl edit does.
func (w *world) edit(g *v1alpha1.ProxyGroup, change func(*v1alpha1.ProxyGroup)) {
	w.t.Helper()
	w.read(g)
	base := g.DeepCopy()
	change(g)
	if err := w.client.Patch(w.t.Context(), g, client.MergeFrom(base)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) read(object client.Object) {
	w.t.Helper()
	if err := w.client.Get(w.t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
		w.t.Fatal(err)
	}
}

// exists reports whether an object is there; it reads it.
func (w *world) exists(ctx context.Context, object client.Object, name string) bool {
	err := w.client.Get(ctx, types.NamespacedName{Namespace: w.namespace, Name: name}, object)
	if err != nil && !apierrors.IsNotFound(err) {
		w.t.Fatal(err)
	}
	return err == nil
}

// waitCondition waits until a condition of a group or recorder has a status and its message, or
// reason, holds text.
func (w *world) waitCondition(g parent, kind string, status metav1.ConditionStatus, text string) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%s=%s %q of %s", kind, status, text, g.GetName()), func(ctx context.Context) error {
		if err := w.client.Get(ctx, client.ObjectKeyFromObject(g), g); err != nil {
			return err
		}
		c := meta.FindStatusCondition(g.ReplicaStatus().Conditions, kind)
		if c == nil {
			return fmt.Errorf("no such condition")
		}
		if c.Status != status || !strings.Contains(c.Reason+": "+c.Message, text) || c.ObservedGeneration != g.GetGeneration() {
			return fmt.Errorf("it is %s %s: %s (generation %d of %d)", c.Status, c.Reason, c.Message, c.ObservedGeneration, g.GetGeneration())
		}
		return nil
	})
}

func (w *world) waitReady(g *v1alpha1.ProxyGroup) {
	w.t.Helper()
	w.waitCondition(g, v1alpha1.ProxyGroupReady, metav1.ConditionTrue, "ProxyGroupReady")
}

// waitGone waits until a group is gone.
func (w *world) waitGone(g parent) {
	w.t.Helper()
	w.eventually("the end of "+g.GetName(), func(ctx context.Context) error {
		err := w.client.Get(ctx, client.ObjectKeyFromObject(g), g)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("it exists: %v, %w", g.GetFinalizers(), err)
	})
}

// service returns a Service of the tailnet, or nil.
func (w *world) service(ctx context.Context, name string) *tailscale.VIPService {
	s, err := w.admin.VIPServices().Get(ctx, name)
	if err != nil && !tailscale.IsNotFound(err) {
		w.t.Fatal(err)
	}
	return s
}

// devices returns the names of all devices of the tailnet.
func (w *world) devices(ctx context.Context) []string {
	list, err := w.admin.Devices().List(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, d := range list {
		names = append(names, d.Hostname)
	}
	return names
}

func baseURL(tn *tailnet.Tailnet) *url.URL {
	u, err := url.Parse(tn.URL())
	if err != nil {
		panic(err)
	}
	return u
}

// left returns what there is of a group in the operator's namespace.
func (w *world) left(ctx context.Context, g parent) []string {
	var left []string
	for _, kind := range append(slices.Clone(workload.Kinds), corev1.SchemeGroupVersion.WithKind("Secret"), corev1.SchemeGroupVersion.WithKind("Pod")) {
		list := &metav1.PartialObjectMetadataList{}
		list.SetGroupVersionKind(kind)
		err := w.client.List(ctx, list, client.InNamespace(w.namespace), client.MatchingLabels{labelParent: g.GetName()})
		if meta.IsNoMatchError(err) {
			continue
		} else if err != nil {
			return append(left, err.Error())
		}
		for _, item := range list.Items {
			left = append(left, kind.Kind+" "+item.Name)
		}
	}
	return left
}

// checkNothingLeft checks that a group that is gone left nothing, nowhere.
func (w *world) checkNothingLeft(g parent) {
	w.t.Helper()
	w.eventually("the end of everything of "+g.GetName(), func(ctx context.Context) error {
		if left := w.left(ctx, g); len(left) > 0 {
			return fmt.Errorf("in the cluster: %v", left)
		}
		if devices := w.devices(ctx); len(devices) > 0 {
			return fmt.Errorf("devices: %v", devices)
		}
		services, err := w.admin.VIPServices().List(ctx)
		if err != nil || len(services) > 0 {
			return fmt.Errorf("services: %v, %w", services, err)
		}
		keys, err := w.admin.Keys().List(ctx, true)
		for _, k := range keys {
			if strings.Contains(k.Description, g.GetName()) {
				return fmt.Errorf("auth key %s", k.ID)
			}
		}
		return err
	})
}

// event waits for an event about a group or recorder.
func (w *world) event(g parent, reason, text string) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("event %s of %s", reason, g.GetName()), func(ctx context.Context) error {
		var list eventsv1.EventList
		if err := w.client.List(ctx, &list, client.InNamespace(metav1.NamespaceDefault)); err != nil {
			return err
		}
		var others []string
		for _, e := range list.Items {
			if e.Regarding.Name != g.GetName() {
				continue
			}
			if e.Reason == reason && strings.Contains(e.Note, text) {
				return nil
			}
			others = append(others, e.Reason+": "+e.Note)
		}
		return fmt.Errorf("others: %q", others)
	})
}

// statefulSet returns the StatefulSet of a group.
func (w *world) statefulSet(g parent) *appsv1.StatefulSet {
	w.t.Helper()
	s := &appsv1.StatefulSet{}
	if !w.exists(w.t.Context(), s, g.GetName()) {
		w.t.Fatalf("there is no StatefulSet %s", g.GetName())
	}
	return s
}

// condition returns a condition of a group as it was last read.
func condition(g parent, kind string) metav1.Condition {
	if c := meta.FindStatusCondition(g.ReplicaStatus().Conditions, kind); c != nil {
		return *c
	}
	return metav1.Condition{}
}

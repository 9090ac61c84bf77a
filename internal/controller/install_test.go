// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"tailscale.com/ipn"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/tailnet"
	"github.com/tailhelm/tailhelm/test/kubernetes"
	testtailnet "github.com/tailhelm/tailhelm/test/tailnet"
)

// Definitions are installed and upgraded, a newer one stays, and so does that of another
// operator that is in use. Without definitions the controllers wait, and say so.
func TestCRDs(t *testing.T) {
	t.Parallel()
	cluster := kubernetes.New(t, kubernetes.Options{})
	s, err := scheme()
	if err := errors.Join(err, apiextensionsv1.AddToScheme(s)); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(cluster.Config(), client.Options{Scheme: s})
	if err != nil {
		t.Fatal(err)
	}
	d, err := discovery.NewDiscoveryClientForConfig(cluster.Config())
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	waiting := New(Config{Log: logger})
	if err := waitForKinds(ctx, d, waiting.waits, kindProxyGroup, kindProxyClass); err == nil || strings.Count(log.String(), "the CustomResourceDefinitions of ProxyClass, ProxyGroup are missing") != 1 {
		t.Errorf("error %v, log %s", err, &log)
	}
	if err := waiting.Warning(t.Context()); err == nil || !strings.Contains(err.Error(), "install those of the chart") {
		t.Errorf("without definitions, the controllers warn %v", err)
	}
	if err := InstallCRDs(t.Context(), c, release, logger); err != nil {
		t.Fatal(err)
	}
	if err := waitForKinds(t.Context(), d, waiting.waits, kindProxyGroup, kindProxyClass); err != nil {
		t.Fatal(err)
	}
	crd := &unstructured.Unstructured{}
	crd.SetGroupVersionKind(apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition"))
	change := func(revision string) {
		t.Helper()
		if err := c.Get(t.Context(), client.ObjectKey{Name: "proxyclasses.tailscale.com"}, crd); err != nil {
			t.Fatal(err)
		}
		base := crd.DeepCopy()
		annotate(crd, v1alpha1.RevisionAnnotation, revision)
		crd.SetLabels(map[string]string{"app.kubernetes.io/part-of": "another"})
		if err := c.Patch(t.Context(), crd, client.MergeFrom(base)); err != nil {
			t.Fatal(err)
		}
		if err := InstallCRDs(t.Context(), c, release, logger); err != nil {
			t.Fatal(err)
		}
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(crd), crd); err != nil {
			t.Fatal(err)
		}
	}
	check := func(revision string, upgraded bool) {
		t.Helper()
		if change(revision); (crd.GetLabels()["app.kubernetes.io/part-of"] == "tailhelm") != upgraded {
			t.Errorf("revision %q: labels %v", revision, crd.GetLabels())
		}
	}
	for revision, upgraded := range map[string]bool{"0": true, "": true, "999": false} {
		check(revision, upgraded)
	}
	check("1", false)
	check("", true)
	belongsTo := func(name string) {
		t.Helper()
		base := crd.DeepCopy()
		annotate(crd, "meta.helm.sh/release-name", name)
		annotate(crd, "meta.helm.sh/release-namespace", release.Namespace)
		if err := c.Patch(t.Context(), crd, client.MergeFrom(base)); err != nil {
			t.Fatal(err)
		}
	}
	belongsTo("another")
	check("", false)
	belongsTo(release.Name)
	check("", true)
	officialRecorder(t, c)
	check("", false)
}

// officialRecorder makes a Recorder that our definition does not let through: with a bucket.
func officialRecorder(t *testing.T, c client.Client) *v1alpha1.Recorder {
	t.Helper()
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := c.Get(t.Context(), client.ObjectKey{Name: "recorders.tailscale.com"}, crd); err != nil {
		t.Fatal(err)
	}
	base := crd.DeepCopy()
	spec := crd.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
	storage := spec.Properties["storage"]
	storage.XValidations = nil
	spec.Properties["storage"] = storage
	if err := c.Patch(t.Context(), crd, client.MergeFrom(base)); err != nil {
		t.Fatal(err)
	}
	r := &v1alpha1.Recorder{ObjectMeta: metav1.ObjectMeta{Name: "official"}, Spec: v1alpha1.RecorderSpec{Storage: &v1alpha1.RecorderStorage{S3: &v1alpha1.S3{}}}}
	err := wait.PollUntilContextTimeout(t.Context(), 100*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		err := c.Create(ctx, r) // the API server takes a moment to know
		return err == nil, client.IgnoreNotFound(ignoreInvalid(err))
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func ignoreInvalid(err error) error {
	if apierrors.IsInvalid(err) {
		return nil
	}
	return err
}

// Groups do not wait for a definition of Recorders, which an older release of the chart did
// not bring; once it is there, recorders are served, too.
func TestWithoutRecorders(t *testing.T) {
	t.Parallel()
	cluster := kubernetes.New(t, kubernetes.Options{ControllerManager: true})
	s, err := scheme()
	if err := errors.Join(err, apiextensionsv1.AddToScheme(s)); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(cluster.Config(), client.Options{Scheme: s})
	if err != nil {
		t.Fatal(err)
	}
	definitions, err := v1alpha1.CustomResourceDefinitions()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range definitions {
		if d.GetName() == "recorders.tailscale.com" {
			continue
		}
		if err := installCRD(t.Context(), c, release, slog.New(slog.DiscardHandler), d); err != nil {
			t.Fatal(err)
		}
	}
	d, err := discovery.NewDiscoveryClientForConfig(cluster.Config())
	if err != nil {
		t.Fatal(err)
	}
	silent := New(Config{Log: slog.New(slog.DiscardHandler)})
	if err := waitForKinds(t.Context(), d, silent.waits, kindProxyGroup, kindProxyClass); err != nil {
		t.Fatal(err)
	}
	w := newWorldIn(t, cluster, c, testtailnet.New(t, testtailnet.Options{NoHTTPS: true}))
	w.start()
	g := w.group(replicas(1))
	w.waitReady(g)
	if err := InstallCRDs(t.Context(), c, release, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if err := waitForKinds(t.Context(), d, silent.lacks, kindRecorder); err != nil {
		t.Fatal(err)
	}
	w.waitTaking(w.recorder(v1alpha1.RecorderSpec{}))
	w.waitReady(g)
	// One that is the official operator's is left alone.
	official := officialRecorder(t, c)
	w.waitTaking(w.recorder(v1alpha1.RecorderSpec{}))
	if w.read(official); len(official.Finalizers)+len(official.Annotations)+len(official.Status.Conditions) > 0 {
		t.Errorf("the official operator's Recorder has the finalizers %q, annotations %v, conditions %v", official.Finalizers, official.Annotations, official.Status.Conditions)
	}
}

// operatorDevice makes a Deployment that is the operator's, its device, and the Secret with its state.
func (w *world) operatorDevice() {
	w.t.Helper()
	labels := map[string]string{"app": "operator"}
	w.create(&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "operator", Namespace: w.namespace}, Spec: appsv1.DeploymentSpec{
		Replicas: ptr.To[int32](1), Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "operator", Image: "x"}}}},
	}})
	device, err := w.tailnet.Device(w.t.Context(), "operator", testtailnet.Identity{Tags: []string{tagK8s}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = device.Close() })
	list, err := w.admin.Devices().List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	state := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "operator", Namespace: w.namespace}}
	prefs := ipn.NewPrefs()
	prefs.Hostname, prefs.AdvertiseTags = "operator", []string{tagK8s}
	for _, d := range list {
		if d.Hostname == "operator" {
			state.Data = map[string][]byte{tailnet.FieldDeviceID: []byte(d.NodeID), "_current-profile": []byte("profile-1"), "profile-1": prefs.ToBytes()}
		}
	}
	w.create(state)
}

// operatorPod returns the pod of operatorDevice's Deployment when it is there.
func (w *world) operatorPod() *corev1.Pod {
	w.t.Helper()
	var pods corev1.PodList
	w.eventually("the operator's pod", func(ctx context.Context) error {
		err := w.client.List(ctx, &pods, client.InNamespace(w.namespace), client.MatchingLabels{"app": "operator"})
		if err == nil && len(pods.Items) != 1 {
			err = fmt.Errorf("there are %d", len(pods.Items))
		}
		return err
	})
	return &pods.Items[0]
}

// bind gives a pod a node without a kubelet, where it ends when somebody says so. (The control
// plane ends pods that have no node.)
func (w *world) bind(pod *corev1.Pod) {
	w.t.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: w.namespace}, Spec: corev1.NodeSpec{Unschedulable: true}} // for others
	w.create(node)
	w.t.Cleanup(func() {
		if err := w.client.Delete(context.Background(), node); err != nil {
			w.t.Error(err)
		}
	})
	binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: node.Name}}
	if err := w.client.SubResource("binding").Create(w.t.Context(), pod, binding); err != nil {
		w.t.Fatal(err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// firstFails returns a configuration with which the first request of each kind fails that is
// for what cleanup looks at or changes.
func firstFails(config *rest.Config) *rest.Config {
	var mu sync.Mutex
	seen := map[string]bool{}
	first := func(what string) bool {
		mu.Lock()
		defer mu.Unlock()
		defer func() { seen[what] = true }()
		return !seen[what]
	}
	kinds := regexp.MustCompile("/(proxygroups|recorders|deployments|pods)(/|$)")
	c := rest.CopyConfig(config)
	c.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			if kinds.MatchString(r.URL.Path) && first(r.Method+r.URL.Path) {
				return nil, errors.New("the API server restarts")
			}
			return next.RoundTrip(r)
		})
	})
	return c
}

// Cleanup deletes the operator's groups and recorders while it runs, stops it, and deletes its device
// and the state of it. Requests that fail are tried again, and a pod that was evicted is none to wait for.
func TestCleanup(t *testing.T) {
	w := newWorld(t)
	g, r := w.group(replicas(1)), w.recorder(v1alpha1.RecorderSpec{})
	w.waitReady(g)
	w.waitTaking(r)
	w.operatorDevice()
	evicted := w.operatorPod().DeepCopy()
	evicted.ObjectMeta = metav1.ObjectMeta{Name: "evicted", Namespace: w.namespace, Labels: map[string]string{"app": "operator"}}
	w.create(evicted)
	evicted.Status.Phase = corev1.PodFailed
	if err := w.client.Status().Update(t.Context(), evicted); err != nil {
		t.Fatal(err)
	}
	cleanup := Cleanup{
		API: w.config.API, Cluster: firstFails(w.config.Cluster), Deployment: "operator", Log: w.config.Log, Namespace: w.namespace,
		Operator: w.config.Operator, StateSecret: "operator", Timeout: patience,
	}
	if err := cleanup.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.checkNothingLeft(g)
	w.checkNothingLeft(r)
	if w.exists(t.Context(), &corev1.Secret{}, "operator") {
		t.Error("the state is left")
	}
	if err := cleanup.Run(t.Context()); err != nil {
		t.Errorf("again: %v", err)
	}
}

// The device of an operator that still drains stays, and so does its state: the operator would
// come back as another device.
func TestCleanupWhileTheOperatorDrains(t *testing.T) {
	w := newWorld(t)
	w.operatorDevice()
	pod := w.operatorPod()
	w.bind(pod)
	cleanup := Cleanup{
		API: w.config.API, Cluster: w.config.Cluster, Deployment: "operator", Log: w.config.Log, Namespace: w.namespace,
		Operator: w.config.Operator, StateSecret: "operator", Timeout: 8 * time.Second,
	}
	if err := cleanup.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !w.exists(t.Context(), &corev1.Secret{}, "operator") {
		t.Error("the state is gone while the operator runs")
	}
	if devices := w.devices(t.Context()); !slices.Equal(devices, []string{"operator"}) {
		t.Errorf("devices %q, want the operator's", devices)
	}
	if err := w.client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil { // as a kubelet does
		t.Fatal(err)
	}
	cleanup.Timeout = patience
	if err := cleanup.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if devices := w.devices(t.Context()); len(devices) > 0 || w.exists(t.Context(), &corev1.Secret{}, "operator") {
		t.Errorf("the pod has ended, and devices %q or the state are left", devices)
	}
}

// Cleanup ends even when the operator does not run and the API is down. It removes the
// operator's finalizer, and leaves others'. What is needed to delete the device later
// stays.
func TestCleanupWithoutOperator(t *testing.T) {
	w := newWorld(t)
	g, kept := w.group(replicas(1)), w.group(replicas(1))
	w.waitReady(g)
	w.waitReady(kept)
	w.stop()
	const foreign = "example.com/backup"
	w.edit(kept, func(g *v1alpha1.ProxyGroup) { controllerutil.AddFinalizer(g, foreign) })
	w.tailnet.Fail(testtailnet.PathAPI, testtailnet.Fault{Status: http.StatusInternalServerError})
	w.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "operator", Namespace: w.namespace}, Data: map[string][]byte{tailnet.FieldDeviceID: []byte("n1")}})
	cleanup := Cleanup{Cluster: w.config.Cluster, Deployment: "operator", Log: w.config.Log, Namespace: w.namespace, Operator: w.config.Operator, StateSecret: "operator", Timeout: 24 * time.Second}
	if err := cleanup.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.client.Get(t.Context(), client.ObjectKeyFromObject(g), g); !apierrors.IsNotFound(err) {
		t.Error(fmt.Errorf("the group is there: %w", err))
	}
	if !w.exists(t.Context(), &corev1.Secret{}, "operator") {
		t.Error("the state of a device that could not be deleted is gone: nobody can try again")
	}
	if w.read(kept); kept.DeletionTimestamp == nil || !slices.Equal(kept.Finalizers, []string{foreign}) {
		t.Errorf("finalizers %q, want %s alone", kept.Finalizers, foreign)
	}
	w.tailnet.ClearFaults()
}

// The rights that the chart gives the operator are enough for the whole life of a group and of a recorder.
func TestTheChartsRightsAreEnough(t *testing.T) {
	t.Parallel()
	w := newWorldIn(t, shared.cluster, shared.client, testtailnet.New(t, testtailnet.Options{NoHTTPS: true}))
	if err := w.client.Delete(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: impersonator, Namespace: w.namespace}}); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("class-%d", serial.Add(1))
	out, err := w.cluster.Helm(t.Context(), "install", "operator", "../../charts/tailscale-operator", "--namespace", w.namespace, "--no-hooks",
		"--set-string", "oauth.clientId=x,oauth.clientSecret=y,apiServerProxyConfig.allowImpersonation=true",
		"--set-string", "fullnameOverride=op-"+name).CombinedOutput()
	if err != nil {
		t.Fatalf("helm: %v\n%s", err, out)
	}
	token, err := w.cluster.ServiceAccountToken(t.Context(), w.namespace, "op-"+name)
	if err != nil {
		t.Fatal(err)
	}
	operator := &appsv1.Deployment{}
	if !w.exists(t.Context(), operator, "op-"+name) {
		t.Fatal("the chart made no Deployment")
	}
	for _, arg := range operator.Spec.Template.Spec.Containers[0].Args {
		if value, ok := strings.CutPrefix(arg, "--impersonator="); ok {
			w.config.Impersonator = value
		}
	}
	w.config.Cluster, w.config.LeaderElectionID, w.config.InstallCRDs = w.cluster.TokenConfig(token), "op-"+name, true
	w.start()
	w.class(name, v1alpha1.ProxyClassSpec{
		Metrics: &v1alpha1.Metrics{Enable: true},
		StaticEndpoints: &v1alpha1.StaticEndpointsConfig{NodePort: &v1alpha1.NodePortConfig{
			Ports: []v1alpha1.PortRange{{Port: 30200, EndPort: 30210}}, Selector: map[string]string{"edge": name},
		}},
	})
	w.node(name, map[string]string{"edge": name}, "192.0.2.9")
	g := w.group(func(g *v1alpha1.ProxyGroup) { g.Spec.ProxyClass = name })
	w.waitReady(g)
	w.event(g, "ProxyGroupReady", "2/2")
	w.edit(g, replicas(1))
	w.waitReady(g)
	r := w.recorder(v1alpha1.RecorderSpec{Replicas: ptr.To[int32](2)})
	w.waitTaking(r)
	w.scaleRecorder(r, 1)
	w.waitTaking(r)
	w.delete(r)
	w.waitGone(r)
	if err := w.client.Delete(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	w.waitGone(g)
	w.checkNothingLeft(g)
}

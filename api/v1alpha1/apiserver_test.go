// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/test/kubernetes"
)

// documented is what the documentation of the official operator has people apply, for a
// highly available proxy.
const documented = `
apiVersion: tailscale.com/v1alpha1
kind: ProxyGroup
metadata:
  name: my-cluster
spec:
  type: kube-apiserver
  replicas: 2
  tags: ["tag:k8s"]
  kubeAPIServer:
    mode: auth
`

// TestAPIServer checks with a real API server what the types' rules let through.
func TestAPIServer(t *testing.T) {
	cluster := kubernetes.New(t, kubernetes.Options{})
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(cluster.Config(), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	definitions, err := v1alpha1.CustomResourceDefinitions()
	if err != nil {
		t.Fatal(err)
	}
	for _, definition := range definitions {
		if definition.GetAnnotations()[v1alpha1.RevisionAnnotation] == "" {
			t.Errorf("%s has no annotation %s", definition.GetName(), v1alpha1.RevisionAnnotation)
		}
		if err := c.Create(t.Context(), definition); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := cluster.Kubectl(t.Context(), "wait", "--for=condition=Established", "--timeout=1m", "crd", "--all").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	t.Run("create", func(t *testing.T) { testCreate(t, c) })
	t.Run("update", func(t *testing.T) { testUpdate(t, c) })
	t.Run("update a recorder", func(t *testing.T) { testUpdateRecorder(t, c) })
	t.Run("kubectl", func(t *testing.T) { testKubectl(t, c, cluster) })
}

func group(name, spec string) string {
	return fmt.Sprintf("apiVersion: tailscale.com/v1alpha1\nkind: ProxyGroup\nmetadata: {name: %q}\nspec: %s\n", name, spec)
}

func class(spec string) string {
	return fmt.Sprintf("apiVersion: tailscale.com/v1alpha1\nkind: ProxyClass\nmetadata: {name: class}\nspec: %s\n", spec)
}

func recorder(name, spec string) string {
	return fmt.Sprintf("apiVersion: tailscale.com/v1alpha1\nkind: Recorder\nmetadata: {name: %q}\nspec: %s\n", name, spec)
}

func parse(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	object := &unstructured.Unstructured{}
	if err := yaml.UnmarshalStrict([]byte(text), &object.Object); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return object
}

// check compares an answer of the API server with a part of the wanted one; empty is success.
func check(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("refused: %v", err)
	case want != "" && err == nil:
		t.Errorf("not refused, want %q", want)
	case want != "" && !apierrors.IsInvalid(err):
		t.Errorf("refused with %v, want an object that is invalid", err)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Errorf("refused with %q, want %q", err, want)
	}
}

func testCreate(t *testing.T, c client.Client) {
	t.Helper()
	long := strings.Repeat("a", 50)
	for name, test := range map[string]struct{ object, want string }{
		"documented":         {documented, ""},
		"least":              {group("g", `{type: kube-apiserver}`), ""},
		"everything":         {group("g", `{type: kube-apiserver, tags: ["tag:a", "tag:b-1"], replicas: 3, hostnamePrefix: h, proxyClass: c, kubeAPIServer: {mode: noauth, hostname: cluster}, tailnet: ""}`), ""},
		"no replicas":        {group("g", `{type: kube-apiserver, replicas: 0}`), ""},
		"long name":          {group(long, `{type: kube-apiserver}`), ""},
		"too long name":      {group(long+"a", `{type: kube-apiserver}`), "more than 50 characters"},
		"dot":                {group("a.b", `{type: kube-apiserver}`), "contains a dot"},
		"operator":           {group("operator", `{type: kube-apiserver}`), "the operator's own objects"},
		"impersonator":       {group("kube-apiserver-auth-proxy", `{type: kube-apiserver}`), "the operator's own objects"},
		"no type":            {group("g", `{}`), "spec.type: Required value"},
		"ingress":            {group("g", `{type: ingress}`), "this operator serves ProxyGroups of the type kube-apiserver only"},
		"egress":             {group("g", `{type: egress}`), "this operator serves ProxyGroups of the type kube-apiserver only"},
		"unknown type":       {group("g", `{type: other}`), `Unsupported value: "other"`},
		"kubeAPIServer":      {group("g", `{type: ingress, kubeAPIServer: {mode: auth}}`), "spec.kubeAPIServer is for the type kube-apiserver only"},
		"mode":               {group("g", `{type: kube-apiserver, kubeAPIServer: {mode: banana}}`), `Unsupported value: "banana"`},
		"hostname":           {group("g", `{type: kube-apiserver, kubeAPIServer: {hostname: a.b}}`), "spec.kubeAPIServer.hostname"},
		"hostname's end":     {group("g", `{type: kube-apiserver, kubeAPIServer: {hostname: a-}}`), "spec.kubeAPIServer.hostname"},
		"tag":                {group("g", `{type: kube-apiserver, tags: [k8s]}`), "spec.tags[0]"},
		"tags":               {group("g", `{type: kube-apiserver, tags: [`+strings.Repeat(`"tag:a",`, 33)+`]}`), "spec.tags"},
		"negative":           {group("g", `{type: kube-apiserver, replicas: -1}`), "spec.replicas"},
		"many replicas":      {group("g", `{type: kube-apiserver, replicas: 1001}`), "spec.replicas"},
		"prefix":             {group("g", `{type: kube-apiserver, hostnamePrefix: -a}`), "spec.hostnamePrefix"},
		"long prefix":        {group("g", fmt.Sprintf(`{type: kube-apiserver, replicas: 10, hostnamePrefix: %q}`, strings.Repeat("a", 61))), ""},
		"too long prefix":    {group("g", fmt.Sprintf(`{type: kube-apiserver, replicas: 11, hostnamePrefix: %q}`, strings.Repeat("a", 61))), "spec.hostnamePrefix is too long"},
		"name of a replica":  {group("g-1", `{type: kube-apiserver, hostnamePrefix: g}`), "can be the name of a replica"},
		"host of a replica":  {group("g", `{type: kube-apiserver, kubeAPIServer: {hostname: g-12}}`), "can be the name of a replica"},
		"no host of replica": {group("g", `{type: kube-apiserver, kubeAPIServer: {hostname: g-12a}}`), ""},
		"tailnet":            {group("g", `{type: kube-apiserver, tailnet: other}`), "this operator has one tailnet"},

		"empty class":            {class(`{}`), ""},
		"class":                  {class(officialClass), ""},
		"null statefulSet":       {class(`{statefulSet: null}`), ""},
		"monitor":                {class(`{metrics: {enable: true, serviceMonitor: {enable: true, labels: {a: b}}}}`), ""},
		"monitor alone":          {class(`{metrics: {enable: false, serviceMonitor: {enable: true}}}`), "metrics.serviceMonitor.enable needs metrics.enable"},
		"no monitor":             {class(`{metrics: {enable: false, serviceMonitor: {enable: false}}}`), ""},
		"no ports":               {class(`{staticEndpoints: {nodePort: {ports: []}}}`), "spec.staticEndpoints.nodePort.ports"},
		"port":                   {class(`{staticEndpoints: {nodePort: {ports: [{port: 0}]}}}`), "spec.staticEndpoints.nodePort.ports[0].port"},
		"port 65536":             {class(`{staticEndpoints: {nodePort: {ports: [{port: 65536}]}}}`), "spec.staticEndpoints.nodePort.ports[0].port"},
		"ports backwards":        {class(`{staticEndpoints: {nodePort: {ports: [{port: 30002, endPort: 30001}]}}}`), "endPort must not be smaller than port"},
		"one port":               {class(`{staticEndpoints: {nodePort: {ports: [{port: 30002, endPort: 0}, {port: 30003, endPort: 30003}]}}}`), ""},
		"env":                    {class(`{statefulSet: {pod: {tailscaleContainer: {env: [{name: "1A"}]}}}}`), "spec.statefulSet.pod.tailscaleContainer.env[0].name"},
		"label":                  {class(`{statefulSet: {labels: {a: "not a label"}}}`), "spec.statefulSet.labels.a"},
		"dnsPolicy":              {class(`{statefulSet: {pod: {dnsPolicy: Other}}}`), "spec.statefulSet.pod.dnsPolicy"},
		"recorder":               {recorder("r", `{}`), ""},
		"official recorder":      {recorder("r", officialRecorder), ""},
		"our recorder":           {recorder("r", ourRecorder), ""},
		"recorders":              {recorder("r", `{replicas: 3}`), ""},
		"no recorders":           {recorder("r", `{replicas: 0}`), ""},
		"negative recorders":     {recorder("r", `{replicas: -1}`), "spec.replicas"},
		"recorder's long name":   {recorder(long, `{}`), ""},
		"recorder's longer name": {recorder(long+"a", `{}`), "more than 50 characters"},
		"recorder's dot":         {recorder("a.b", `{}`), "contains a dot"},
		"recorder operator":      {recorder("operator", `{}`), "the operator's own objects"},
		"recorder's tag":         {recorder("r", `{tags: [k8s]}`), "spec.tags[0]"},
		"recorder's tailnet":     {recorder("r", `{tailnet: other}`), "this operator has one tailnet"},
		"s3":                     {recorder("r", `{storage: {s3: {endpoint: s3.example.com, bucket: b, credentials: {secret: {name: s}}}}}`), "use spec.storage.persistentVolumeClaim instead of s3"},
		"no size":                {recorder("r", `{storage: {persistentVolumeClaim: {}}}`), "spec.storage.persistentVolumeClaim.size: Required value"},
		"size 0":                 {recorder("r", `{storage: {persistentVolumeClaim: {size: 0}}}`), "size must be above 0"},
		"size in words":          {recorder("r", `{storage: {persistentVolumeClaim: {size: large}}}`), "spec.storage.persistentVolumeClaim.size"},
		"read only":              {recorder("r", `{storage: {persistentVolumeClaim: {size: 1Gi, accessModes: [ReadOnlyMany]}}}`), "accessModes[0]"},
		"whenDeleted":            {recorder("r", `{storage: {persistentVolumeClaim: {size: 1Gi, whenDeleted: Archive}}}`), "whenDeleted"},
		"keep":                   {recorder("r", `{recordings: {keep: 30d}}`), "spec.recordings.keep"},
		"keep a negative time":   {recorder("r", `{recordings: {keep: -1h}}`), "spec.recordings.keep"},
		"total":                  {recorder("r", `{recordings: {maxTotal: -1Gi}}`), "maxTotal must not be negative"},
		"recording":              {recorder("r", `{recordings: {maxRecording: -1}}`), "maxRecording must not be negative"},
		"free":                   {recorder("r", `{recordings: {minFree: "-1"}}`), "minFree must not be negative"},
		"from":                   {recorder("r", `{recordings: {from: [k8s]}}`), "spec.recordings.from[0]"},
		"recorder's account":     {recorder("r", `{statefulSet: {pod: {serviceAccount: {name: A}}}}`), "serviceAccount.name"},
		"recorder's label":       {recorder("r", `{statefulSet: {pod: {labels: {a: "not a label"}}}}`), "spec.statefulSet.pod.labels.a"},

		"pullPolicy": {class(`{statefulSet: {pod: {tailscaleContainer: {imagePullPolicy: Sometimes}}}}`), "imagePullPolicy"},
	} {
		t.Run(name, func(t *testing.T) {
			// Strict: a field that the definition lacks is an error.
			strict := client.WithFieldValidation(c, metav1.FieldValidationStrict)
			check(t, strict.Create(t.Context(), parse(t, test.object), client.DryRunAll), test.want)
		})
	}
}

// officialRecorder uses each field that the official operator knows, but for s3.
const officialRecorder = `
  enableUI: true
  tags: ["tag:k8s-recorder"]
  replicas: 1
  tailnet: ""
  statefulSet:
    labels: {a: b}
    annotations: {a: b}
    pod:
      labels: {a: b}
      annotations: {a: b}
      affinity: {nodeAffinity: {}}
      securityContext: {runAsUser: 1}
      imagePullSecrets: [{name: a}]
      nodeSelector: {a: b}
      tolerations: [{operator: Exists}]
      serviceAccount: {name: recorder, annotations: {a: b}}
      container: {env: [{name: A, value: b}, {name: POD_UID, value: "1"}], image: a, imagePullPolicy: Always, resources: {limits: {cpu: 1}}, securityContext: {privileged: true}}
`

// ourRecorder uses each field that this project adds.
const ourRecorder = `
  storage: {persistentVolumeClaim: {size: 10Gi, storageClassName: fast, accessModes: [ReadWriteOncePod], whenDeleted: Delete}}
  recordings: {keep: 720h30m, maxTotal: 9.5Gi, maxRecording: 0, minFree: 1000000, from: ["tag:k8s"]}
`

// officialClass uses each field that the official operator knows.
const officialClass = `
  metrics: {enable: true}
  tailscale: {acceptRoutes: true}
  useLetsEncryptStagingEnvironment: true
  staticEndpoints: {nodePort: {ports: [{port: 30001, endPort: 30010}], selector: {a: b}}}
  statefulSet:
    labels: {a: b}
    annotations: {a: b}
    pod:
      labels: {a: b}
      annotations: {a: b}
      affinity: {nodeAffinity: {}}
      securityContext: {runAsUser: 1}
      imagePullSecrets: [{name: a}]
      nodeName: a
      nodeSelector: {a: b}
      tolerations: [{operator: Exists}]
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: a, whenUnsatisfiable: DoNotSchedule}]
      priorityClassName: a
      dnsPolicy: ClusterFirst
      dnsConfig: {nameservers: [1.1.1.1]}
      tailscaleContainer: {env: [{name: A, value: b}, {name: TS_PORT, value: "1"}], image: a, imagePullPolicy: Always, resources: {limits: {cpu: 1}}, securityContext: {privileged: true}, debug: {enable: true}}
      tailscaleInitContainer: {image: a}
`

func testUpdate(t *testing.T, c client.Client) {
	t.Helper()
	const tags = "spec.tags is immutable"
	for name, test := range map[string]struct{ from, to, want string }{
		"scale":         {`{type: kube-apiserver}`, `{type: kube-apiserver, replicas: 3}`, ""},
		"mode":          {`{type: kube-apiserver}`, `{type: kube-apiserver, kubeAPIServer: {mode: noauth}}`, ""},
		"rename":        {`{type: kube-apiserver}`, `{type: kube-apiserver, hostnamePrefix: h, kubeAPIServer: {hostname: a}}`, ""},
		"type":          {`{type: kube-apiserver}`, `{type: ingress}`, "spec.type is immutable"},
		"tags":          {`{type: kube-apiserver, tags: ["tag:a"]}`, `{type: kube-apiserver, tags: ["tag:b"]}`, tags},
		"tags added":    {`{type: kube-apiserver}`, `{type: kube-apiserver, tags: ["tag:b"]}`, tags},
		"tags removed":  {`{type: kube-apiserver, tags: ["tag:a"]}`, `{type: kube-apiserver}`, tags},
		"tags the same": {`{type: kube-apiserver, tags: ["tag:a"]}`, `{type: kube-apiserver, tags: ["tag:a"], replicas: 1}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			object := parse(t, group("updated-"+strings.ReplaceAll(name, " ", "-"), test.from))
			if err := c.Create(t.Context(), object); err != nil {
				t.Fatal(err)
			}
			object.Object["spec"] = parse(t, group("", test.to)).Object["spec"]
			check(t, c.Update(t.Context(), object), test.want)
		})
	}
}

func testUpdateRecorder(t *testing.T, c client.Client) {
	t.Helper()
	const storage = "spec.storage is immutable"
	for name, test := range map[string]struct{ from, to, want string }{
		"scale":           {`{}`, `{replicas: 3, recordings: {keep: 1h}}`, ""},
		"tags":            {`{tags: ["tag:a"]}`, `{}`, "spec.tags is immutable"},
		"storage added":   {`{}`, `{storage: {persistentVolumeClaim: {size: 1Gi}}}`, storage},
		"storage removed": {`{storage: {persistentVolumeClaim: {size: 1Gi}}}`, `{}`, storage},
		"larger":          {`{storage: {persistentVolumeClaim: {size: 1Gi}}}`, `{storage: {persistentVolumeClaim: {size: 2Gi}}}`, storage},
		"the same":        {`{storage: {persistentVolumeClaim: {size: 1Gi}}}`, `{replicas: 2, storage: {persistentVolumeClaim: {size: 1Gi}}}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			object := parse(t, recorder("updated-"+strings.ReplaceAll(name, " ", "-"), test.from))
			if err := c.Create(t.Context(), object); err != nil {
				t.Fatal(err)
			}
			object.Object["spec"] = parse(t, recorder("", test.to)).Object["spec"]
			check(t, c.Update(t.Context(), object), test.want)
		})
	}
}

// testKubectl applies what the documentation has people apply, and looks at it as they do.
func testKubectl(t *testing.T, c client.Client, cluster *kubernetes.Cluster) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "group.yaml")
	if err := os.WriteFile(file, []byte(documented), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := cluster.Kubectl(t.Context(), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	kubectl("apply", "-f", file)
	my := &v1alpha1.ProxyGroup{}
	if err := c.Get(t.Context(), client.ObjectKey{Name: "my-cluster"}, my); err != nil {
		t.Fatal(err)
	}
	my.Status.URL = "https://my-cluster.tailnet.ts.net"
	my.Status.Conditions = []metav1.Condition{{
		Type: v1alpha1.ProxyGroupReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonProxyGroupReady, LastTransitionTime: metav1.NewTime(time.Now()),
	}}
	if err := c.Status().Update(t.Context(), my); err != nil {
		t.Fatal(err)
	}
	kubectl("wait", "proxygroup", "my-cluster", "--for=condition=ProxyGroupReady=true", "--timeout=30s")
	lines := strings.Split(kubectl("get", "pg", "my-cluster"), "\n")
	for i, want := range []string{"NAME STATUS URL TYPE AGE", "my-cluster ProxyGroupReady https://my-cluster.tailnet.ts.net kube-apiserver"} {
		if got := strings.Join(strings.Fields(lines[i]), " "); !strings.HasPrefix(got, want) {
			t.Errorf("kubectl get pg says %q, want %q", got, want)
		}
	}
	r := &v1alpha1.Recorder{ObjectMeta: metav1.ObjectMeta{Name: "recorder"}}
	if err := c.Create(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	r.Status.Devices = []v1alpha1.TailnetDevice{{Hostname: "recorder-0"}}
	r.Status.Conditions = []metav1.Condition{{
		Type: v1alpha1.RecorderReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonRecorderCreated, LastTransitionTime: metav1.NewTime(time.Now()),
	}}
	if err := c.Status().Update(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	lines = strings.Split(kubectl("get", "rec", "recorder"), "\n")
	for i, want := range []string{"NAME STATUS DEVICE AGE", "recorder RecorderCreated recorder-0"} {
		if got := strings.Join(strings.Fields(lines[i]), " "); !strings.HasPrefix(got, want) {
			t.Errorf("kubectl get rec says %q, want %q", got, want)
		}
	}
}

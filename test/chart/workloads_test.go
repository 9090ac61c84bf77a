// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package chart

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/tailhelm/tailhelm/test/tailhelm"
)

// workloads are ProxyGroups as the operator renders them: arguments of the chart, and what
// the operator gives the templates.
var workloads = map[string]struct{ args, values string }{
	"auth": {"", `
proxyGroup: {name: my-cluster, mode: auth, replicas: 2, running: 2, hostnamePrefix: my-cluster, tags: ["tag:k8s"], service: "svc:my-cluster"}
proxyClass: {}
`},
	"noauth": {"--set networkPolicy.enabled=true,workloads.logging=debug", `
proxyGroup: {name: tools, mode: noauth, replicas: 1, running: 3, hostnamePrefix: k8s-tools, tags: ["tag:k8s", "tag:tools"], service: "svc:kube-tools"}
loginServer: https://control.example.com
proxyClass: {}
`},
	"none": {"", `
proxyGroup: {name: my-cluster, mode: auth, replicas: 0, running: 0, hostnamePrefix: my-cluster, tags: ["tag:k8s"], service: "svc:my-cluster"}
proxyClass: {}
`},
	// Names that YAML would take for something else, and everything that a chart and a ProxyClass can say.
	"everything": {"--values testdata/workloads.values.yaml", `
proxyGroup: {name: "1e3", mode: auth, replicas: 2, running: 2, hostnamePrefix: "0x1", tags: ["tag:k8s"], service: "svc:1e3"}
nodePorts: {"0": 30001, "1": 0}
wireguardPort: 41641
proxyClass:
  metrics: {enable: true, serviceMonitor: {enable: true, labels: {monitoring: team}}}
  tailscale: {acceptRoutes: true}
  useLetsEncryptStagingEnvironment: true
  staticEndpoints: {nodePort: {ports: [{port: 30001, endPort: 30010}]}}
  statefulSet:
    labels: {team: access, tailscale.com/managed: "no"}
    annotations: {note: set}
    pod:
      labels: {team: access, tailscale.com/parent-resource: other}
      annotations: {note: pod}
      affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: arch, operator: Exists}]}]}}}
      securityContext: {runAsUser: 1000650000, fsGroup: 1000650000}
      imagePullSecrets: [{name: pull}, {name: class}]
      nodeSelector: {kubernetes.io/arch: arm64}
      tolerations: [{key: control-plane, operator: Exists, effect: NoSchedule}]
      topologySpreadConstraints: [{maxSkew: 2, topologyKey: rack, whenUnsatisfiable: DoNotSchedule}]
      priorityClassName: system-cluster-critical
      dnsPolicy: None
      dnsConfig: {nameservers: [192.0.2.1]}
      tailscaleContainer:
        image: mirror.example.com/tailhelm:v2
        imagePullPolicy: IfNotPresent
        resources: {requests: {cpu: 100m}, limits: {memory: 256Mi}}
        securityContext: {runAsGroup: 1}
        env: [{name: A, value: class}, {name: C, value: "$(POD_NAME)"}, {name: C, value: last}, {name: POD_UID, value: forged}]
`},
}

// recorders are Recorders as the operator renders them, in the form of workloads.
var recorders = map[string]struct{ args, values string }{
	"recorder": {"", `
recorder: {name: recorder, replicas: 1, running: 1, hostnamePrefix: recorder, tags: ["tag:k8s"], from: ["tag:k8s-operator", "tag:k8s"], spec: {}}
`},
	"recorder-none": {"--set networkPolicy.enabled=true", `
recorder: {name: stopped, replicas: 0, running: 0, hostnamePrefix: stopped, tags: ["tag:k8s"], from: ["tag:k8s"], spec: {enableUI: true, replicas: 0}}
`},
	"recorder-everything": {"--values testdata/workloads.values.yaml", `
loginServer: https://control.example.com
recorder:
  name: "2e4"
  replicas: 2
  running: 3
  hostnamePrefix: "2e4"
  tags: ["tag:k8s-recorder"]
  from: ["tag:k8s-operator"]
  spec:
    replicas: 2
    storage: {persistentVolumeClaim: {size: 10Gi, storageClassName: "", accessModes: [ReadWriteOncePod], whenDeleted: Delete}}
    recordings: {keep: 720h, keepAtLeast: 24h, maxTotal: 9Gi, maxRecording: "0", minFree: 1Gi}
    statefulSet:
      labels: {team: access, tailscale.com/managed: "no"}
      annotations: {note: set}
      pod:
        labels: {team: access, tailscale.com/parent-resource: other}
        annotations: {note: pod}
        affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: arch, operator: Exists}]}]}}}
        securityContext: {runAsUser: 1000650000, fsGroup: 1000650000}
        imagePullSecrets: [{name: pull}, {name: recorder}]
        nodeSelector: {kubernetes.io/arch: arm64}
        tolerations: [{key: control-plane, operator: Exists, effect: NoSchedule}]
        serviceAccount: {name: keeper, annotations: {role: keeper}}
        container:
          image: mirror.example.com/tailhelm:v2
          imagePullPolicy: IfNotPresent
          resources: {requests: {cpu: 100m}, limits: {memory: 256Mi}}
          securityContext: {runAsGroup: 1}
          env: [{name: GOMEMLIMIT, value: 200MiB}, {name: A, value: recorder}, {name: C, value: last}, {name: POD_UID, value: forged}, {name: RECORDINGS_DIR, value: /tmp}]
`},
}

// workloadFolder returns a folder with what the ConfigMap has that the chart makes.
func workloadFolder(t *testing.T, namespace, args string) string {
	t.Helper()
	configMap := template(t, append([]string{"release", chart, "--namespace", namespace, "--show-only", "templates/workloads-configmap.yaml"}, strings.Fields(args)...)...)
	var made corev1.ConfigMap
	if err := yaml.UnmarshalStrict([]byte(configMap), &made); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for key, text := range made.Data {
		path := filepath.Join(dir, strings.ReplaceAll(key, "__", "/"))
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// renderWorkload renders a ProxyGroup or a Recorder as the operator does.
func renderWorkload(t *testing.T, namespace, args, values string) string {
	t.Helper()
	dir := workloadFolder(t, namespace, args)
	given := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(given, []byte("impersonator: kube-apiserver-auth-proxy\n"+values), 0o600); err != nil {
		t.Fatal(err)
	}
	return template(t, "release", dir, "--namespace", namespace, "--values", given)
}

// allWorkloads are workloads and recorders.
func allWorkloads() map[string]struct{ args, values string } {
	all := maps.Clone(workloads)
	maps.Copy(all, recorders)
	return all
}

// TestWorkloadsGolden renders ProxyGroups and Recorders as they are recorded.
func TestWorkloadsGolden(t *testing.T) {
	for name, w := range allWorkloads() {
		t.Run(name, func(t *testing.T) {
			golden(t, filepath.Join("testdata", "workloads", name+".yaml"), renderWorkload(t, "tailscale", w.args, w.values))
		})
	}
}

// TestWorkloadsShipped finds files of the folder workloads that the operator would not get.
func TestWorkloadsShipped(t *testing.T) {
	configMap := template(t, "release", chart, "--show-only", "templates/workloads-configmap.yaml")
	paths, err := filepath.Glob(chart + "/workloads/templates/*")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no templates: %v", err)
	}
	for _, path := range paths {
		if !strings.Contains(configMap, "\n  templates__"+filepath.Base(path)+": |") {
			t.Errorf("the ConfigMap lacks %s", path)
		}
	}
}

// TestWorkloads has the operator's ServiceAccount make the objects of ProxyGroups and Recorders, in a namespace that
// enforces the restricted Pod Security level, and asks what the replicas' may do.
func TestWorkloads(t *testing.T) {
	r := newRig(t)
	r.namespace(t, "workloads")
	mustRun(t, r.upgrade(t.Context(), "release", "workloads", "--set", "apiServerProxyConfig.allowImpersonation=true"))
	for name, w := range allWorkloads() {
		objects := renderWorkload(t, "workloads", w.args, w.values)
		// Twice: the second time, the objects are there.
		for range 2 {
			apply := r.Kubectl(t.Context(), "apply", "--server-side", "--namespace=workloads", "--as=system:serviceaccount:workloads:operator", "--filename=-")
			apply.Stdin = strings.NewReader(objects)
			if out, err := apply.CombinedOutput(); err != nil {
				t.Fatalf("the operator cannot make %s: %v\n%s", name, err, out)
			}
		}
	}
	sets, err := r.Client().AppsV1().StatefulSets("workloads").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(sets.Items) != 6 { // "auth" and "none" have one name
		t.Errorf("there are %d StatefulSets, want 6", len(sets.Items))
	}
	for _, set := range sets.Items {
		r.admitReplica(t, &set)
	}

	const replica = "system:serviceaccount:workloads:tools"
	secret := func(verb, name string) action {
		return action{Verb: verb, Resource: "secrets", Namespace: "workloads", Name: name}
	}
	r.check(t, map[string][]action{
		replica: {
			secret("get", "tools-0"), secret("patch", "tools-2"), secret("get", "tools-2-config"),
			secret("list", "tools-tls"), secret("watch", "tools-tls"), secret("patch", "tools-tls"),
			{Verb: "get", Group: "coordination.k8s.io", Resource: "leases", Namespace: "workloads", Name: "tools"},
			{Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: "workloads", Name: "tools"},
		},
		"system:serviceaccount:workloads:1e3": {token("workloads", "kube-apiserver-auth-proxy")},
	}, true)
	r.check(t, map[string][]action{replica: {
		token("workloads", "kube-apiserver-auth-proxy"), // mode noauth
		secret("get", "tools-3"), secret("get", "operator"), secret("get", "1e3-0"), secret("get", "1e3-tls"), secret("list", ""), secret("watch", ""), secret("create", ""),
		secret("patch", "tools-0-config"), secret("delete", "tools-0"), secret("update", "tools-0"), secret("list", "tools-0"),
		{Verb: "create", Resource: "events", Namespace: "workloads"},
		{Verb: "get", Group: "coordination.k8s.io", Resource: "leases", Namespace: "workloads", Name: "1e3"},
		{Verb: "create", Group: "coordination.k8s.io", Resource: "leases", Namespace: "workloads"},
		{Verb: "list", Resource: "pods", Namespace: "workloads"},
		{Verb: "get", Group: "tailscale.com", Resource: "proxygroups", Name: "tools"},
		impersonate("users", "alice@example.com"),
	}}, false)

	// A recorder has its Secrets, and nothing else.
	const keeper = "system:serviceaccount:workloads:keeper"
	r.check(t, map[string][]action{keeper: {
		secret("get", "2e4-0"), secret("patch", "2e4-2"), secret("get", "2e4-2-config"),
	}}, true)
	r.check(t, map[string][]action{keeper: {
		secret("get", "2e4-3"), secret("get", "recorder-0"), secret("get", "operator"), secret("list", ""), secret("watch", ""), secret("create", ""),
		secret("patch", "2e4-0-config"), secret("delete", "2e4-0"), secret("update", "2e4-0"),
		token("workloads", "kube-apiserver-auth-proxy"), token("workloads", "keeper"),
		{Verb: "list", Resource: "pods", Namespace: "workloads"},
		{Verb: "create", Resource: "events", Namespace: "workloads"},
		{Verb: "get", Group: "tailscale.com", Resource: "recorders", Name: "2e4"},
		impersonate("users", "alice@example.com"),
	}}, false)
}

// admitReplica has the API server admit a StatefulSet's first pod.
func (r *rig) admitReplica(t *testing.T, set *appsv1.StatefulSet) {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: set.Spec.Template.ObjectMeta, Spec: set.Spec.Template.Spec}
	pod.Name = set.Name + "-0"
	for _, claim := range set.Spec.VolumeClaimTemplates { // as the StatefulSet's controller does
		source := &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name + "-" + pod.Name}
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: source}})
	}
	if _, err := r.Client().CoreV1().Pods(set.Namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Errorf("a replica of %s is not admitted: %v", set.Name, err)
	}
}

// TestFlags finds flags in pods that the program has not.
func TestFlags(t *testing.T) {
	program, err := tailhelm.Build(t.Context(), t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	of := func(name string) string {
		return template(t, "release", chart, askedCluster, "--show-only", "templates/"+name+".yaml", "--values", "testdata/workloads.values.yaml",
			"--set", "apiServerProxyConfig.mode=true,oauth.clientId=a,oauth.audience=b,tls.source=secret,tls.secretName=c,loginServer=https://control.example.com")
	}
	w, recorder := workloads["everything"], recorders["recorder-everything"]
	for command, rendered := range map[string]string{
		"operator": of("deployment"), "cleanup": of("cleanup-job"), "proxy": renderWorkload(t, "tailscale", w.args, w.values),
		"recorder": renderWorkload(t, "tailscale", recorder.args, recorder.values),
	} {
		help := output(t, exec.CommandContext(t.Context(), program, command, "--help"))
		flags := regexp.MustCompile(`- (--[a-z-]+)`).FindAllStringSubmatch(rendered, -1)
		if len(flags) == 0 {
			t.Errorf("the pod of `tailhelm %s` has no flags", command)
		}
		for _, flag := range flags {
			if !strings.Contains(help, " "+flag[1]+" ") {
				t.Errorf("the chart sets the flag %s, which `tailhelm %s` has not", flag[1], command)
			}
		}
	}
}

// TestEveryWorkloadValueIsUsed is TestEveryValueIsUsed for the templates of the operator: what the chart gives
// them is read, and what they read is given by the chart or, as workloads/values.yaml has it, by the operator.
func TestEveryWorkloadValueIsUsed(t *testing.T) {
	u, err := analyze(chart + "/workloads/templates")
	if err != nil {
		t.Fatal(err)
	}
	values := readValues(t, chart+"/workloads/values.yaml")
	dir := workloadFolder(t, "tailscale", "")
	values["defaults"] = readValues(t, dir+"/values.yaml")["defaults"]
	for path, where := range u.reads {
		if !exists(values, strings.Split(path, ".")) {
			t.Errorf("%s reads .Values.%s, which neither the chart nor the operator gives", where, path)
		}
	}
	// Fields of a ProxyClass are those of its definition. That one is of no use to templates: the operator
	// makes nodePorts of it.
	fields := readSchema(t).Definitions["com.tailscale.v1alpha1.ProxyClassSpec"].Properties
	delete(fields, "staticEndpoints")
	for field := range fields {
		if !u.uses("proxyClass." + field) {
			t.Errorf("no template of workloads reads the ProxyClass' field %s", field)
		}
	}
	for path, where := range u.reads {
		field, of := strings.CutPrefix(path, "proxyClass.")
		if _, known := fields[strings.Split(field, ".")[0]]; of && !known {
			t.Errorf("%s reads the ProxyClass' field %s, which it has not", where, field)
		}
	}
	delete(values, "proxyClass")
	for _, parent := range []string{"proxyGroup", "recorder"} {
		delete(values[parent].(map[string]any), "uid") // for templates of people
	}
	for _, leaf := range leaves(values, nil) {
		if !u.uses(leaf) {
			t.Errorf("no template of workloads reads %s", leaf)
		}
	}
}

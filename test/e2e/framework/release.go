// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gruntwork-io/terratest/modules/helm"
	"github.com/gruntwork-io/terratest/modules/k8s"
	"github.com/gruntwork-io/terratest/modules/logger"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/yaml"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

// Folders of the repository, as the tests see them.
const (
	Root     = "../.."
	chart    = Root + "/charts/tailscale-operator"
	examples = Root + "/values-examples"
)

const trustMount = "/etc/tailnet-trust"

// Release is an installation of the chart in a namespace of its own.
type Release struct {
	// Name is the release's name, Namespace its namespace, and Hostname that of its
	// device.
	Name, Namespace, Hostname string
	// Files are values files: names under values-examples, or paths. Values come after
	// them, as --set-string does, and Switches as --set does: true or false.
	Files    []string
	Values   map[string]string
	Switches map[string]string
	// Deployment is the name of the operator's Deployment.
	Deployment string

	suite     *Suite
	exits     *exits
	installed bool
	// uninstalled: by Uninstall, in order.
	uninstalled bool
}

// NewRelease makes a namespace for a release, which the end of the test removes together
// with what is left of it. Labels are those of the namespace.
func (s *Suite) NewRelease(t *testing.T, name string, labels map[string]string) *Release {
	t.Helper()
	r := &Release{
		Name: "tailscale-operator", Namespace: name, Hostname: name, Deployment: "operator",
		Values: map[string]string{}, Switches: map[string]string{}, suite: s,
	}
	ctx := t.Context()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if _, err := s.Kube.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.exits, err = s.watchExits(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.cleanup(t) })
	trust, err := s.trust()
	if err != nil {
		t.Fatal(err)
	}
	trust.Name = "tailnet-trust"
	if _, err := s.Kube.CoreV1().ConfigMaps(name).Create(ctx, trust, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return r
}

// trust is a ConfigMap with the certificates that the test tailnet needs trusted.
func (s *Suite) trust() (*corev1.ConfigMap, error) {
	for _, kv := range s.Tailnet.Environ() {
		if path, ok := strings.CutPrefix(kv, "SSL_CERT_FILE="); ok {
			pem, err := os.ReadFile(path) //nolint:gosec // the tailnet's own file
			return &corev1.ConfigMap{Data: map[string]string{"trust.pem": string(pem)}}, err
		}
	}
	return nil, fmt.Errorf("the tailnet names no certificates to trust")
}

// UseOAuth gives the release a new OAuth client for its tags.
func (r *Release) UseOAuth(tags ...string) {
	id, secret := r.suite.Tailnet.OAuthClient(tags...)
	r.Values["oauth.clientId"], r.Values["oauth.clientSecret"] = id, secret
}

// UseAuthKey makes the Secret tailnet-auth-key, which examples name.
func (r *Release) UseAuthKey(t *testing.T) {
	t.Helper()
	key := r.suite.Tailnet.AuthKey(tailnet.Identity{Tags: []string{OperatorTag}})
	r.Secret(t, "tailnet-auth-key", map[string]string{"authkey": key})
}

// Secret makes a Secret in the release's namespace, or replaces it.
func (r *Release) Secret(t *testing.T, name string, data map[string]string) {
	t.Helper()
	secrets := r.suite.Kube.CoreV1().Secrets(r.Namespace)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: data}
	_, err := secrets.Create(t.Context(), secret, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		_, err = secrets.Update(t.Context(), secret, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// environment writes the values with which any installation gets along in the test
// environment: where the control server is, whom to trust, and which image the nodes
// have. All of them are documented.
func (r *Release) environment() (string, error) {
	type object = map[string]any
	var env []object
	for _, kv := range r.suite.Tailnet.Environ() {
		name, value, _ := strings.Cut(kv, "=")
		if name == "SSL_CERT_FILE" {
			value = trustMount + "/trust.pem"
		}
		env = append(env, object{"name": name, "value": value})
	}
	pods := func() object {
		return object{
			"extraEnv":          env,
			"extraVolumes":      []object{{"name": "tailnet-trust", "configMap": object{"name": "tailnet-trust"}}},
			"extraVolumeMounts": []object{{"name": "tailnet-trust", "mountPath": trustMount, "readOnly": true}},
		}
	}
	operator := pods()
	operator["hostname"] = r.Hostname
	operator["image"] = object{"repository": r.suite.image.repository, "tag": r.suite.image.tag, "pullPolicy": "Never"}
	values, err := yaml.Marshal(object{"loginServer": r.suite.Tailnet.URL(), "operatorConfig": operator, "workloads": pods()})
	if err != nil {
		return "", err
	}
	path := filepath.Join(r.suite.dir, r.Namespace+"-environment.yaml")
	return path, os.WriteFile(path, values, 0o600)
}

// options are terratest's, for a helm command about this release.
func (r *Release) options(t *testing.T, timeout time.Duration) *helm.Options {
	t.Helper()
	environment, err := r.environment()
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, file := range r.Files {
		if !strings.Contains(file, "/") {
			file = filepath.Join(examples, file+".yaml")
		}
		files = append(files, file)
	}
	home := filepath.Join(r.suite.dir, "helm")
	waiting := []string{"--wait", "--timeout=" + timeout.String()}
	return &helm.Options{
		ValuesFiles: append(files, environment), SetStrValues: maps.Clone(r.Values), SetValues: maps.Clone(r.Switches),
		KubectlOptions: k8s.NewKubectlOptions("", r.suite.Kubeconfig, r.Namespace),
		EnvVars:        map[string]string{"HELM_CACHE_HOME": home, "HELM_CONFIG_HOME": home, "HELM_DATA_HOME": home},
		ExtraArgs:      map[string][]string{"upgrade": waiting, "rollback": waiting, "delete": waiting},
		Logger:         logger.Discard,
	}
}

// Upgrade is helm upgrade --install --wait: it returns when the operator is ready.
func (r *Release) Upgrade(t *testing.T) {
	t.Helper()
	r.installed = true
	helm.UpgradeContext(t, t.Context(), r.options(t, *patience), chart, r.Name)
}

// UpgradeInVain is helm upgrade --install --wait of something that cannot become ready:
// it fails the test if it does. It does not wait for long.
func (r *Release) UpgradeInVain(t *testing.T) {
	t.Helper()
	r.installed = true
	if err := helm.UpgradeContextE(t, t.Context(), r.options(t, 10*time.Second), chart, r.Name); err == nil {
		t.Error("helm says that the release is ready; it must not be")
	}
}

// Rollback is helm rollback to a revision.
func (r *Release) Rollback(t *testing.T, revision string) {
	t.Helper()
	helm.RollbackContext(t, t.Context(), r.options(t, *patience), r.Name, revision)
}

// Uninstall is helm uninstall --wait.
func (r *Release) Uninstall(t *testing.T) {
	t.Helper()
	helm.DeleteContext(t, t.Context(), r.options(t, *patience), r.Name, true)
	r.installed, r.uninstalled = false, true
}

// cleanup takes down what the test left, with artifacts if it failed, and checks that the
// namespace goes away. The test's own context has ended by then.
func (r *Release) cleanup(t *testing.T) {
	t.Helper()
	if t.Failed() {
		ctx, cancel := context.WithTimeout(context.Background(), *patience)
		defer cancel()
		r.WriteArtifacts(ctx, t)
	}
	if r.installed {
		ctx, cancel := context.WithTimeout(context.Background(), *patience)
		defer cancel()
		if err := helm.DeleteContextE(t, ctx, r.options(t, *patience), r.Name, true); err != nil && !strings.Contains(err.Error(), "not found") {
			t.Errorf("helm uninstall: %v", err)
		}
	}
	r.deleteNamespace(t)
	r.exits.check(t)
	if r.uninstalled {
		r.checkLogs(t)
	}
	for _, device := range r.Devices() {
		if err := r.suite.Tailnet.Remove(device.Name); err != nil {
			t.Error(err)
		}
	}
}

func (r *Release) deleteNamespace(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), *patience)
	defer cancel()
	namespaces := r.suite.Kube.CoreV1().Namespaces()
	if err := namespaces.Delete(ctx, r.Namespace, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Errorf("delete namespace %s: %v", r.Namespace, err)
		return
	}
	err := wait.PollUntilContextCancel(ctx, 200*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		_, err := namespaces.Get(ctx, r.Namespace, metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
	if err != nil {
		t.Errorf("namespace %s hangs: %v", r.Namespace, err)
	}
}

// Devices are the devices that call themselves as the release's does.
func (r *Release) Devices() []tailnet.DeviceStatus {
	var devices []tailnet.DeviceStatus
	for _, d := range r.suite.Tailnet.Devices() {
		if d.Hostname == r.Hostname {
			devices = append(devices, d)
		}
	}
	return devices
}

// Device is the one device of the release, online.
func (r *Release) Device(t *testing.T) tailnet.DeviceStatus {
	t.Helper()
	devices := r.Devices()
	if len(devices) != 1 || !devices[0].Online {
		t.Fatalf("devices of %s: %+v, want one that is online", r.Hostname, devices)
	}
	return devices[0]
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// Kubectl is a command of kubectl as the cluster's administrator.
func (s *Suite) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.Alice.programs.kubectl, append([]string{"--kubeconfig=" + s.Kubeconfig}, args...)...) //nolint:gosec // built for the tests
	cmd.Env = append(os.Environ(), "HOME="+s.dir)
	return cmd
}

// Apply applies static manifests with kubectl, after the changes that their first lines
// ask for (credentials and mode), and with the test environment patched in.
func (r *Release) Apply(t *testing.T, files ...string) {
	t.Helper()
	id, secret := r.suite.Tailnet.OAuthClient(OperatorTag)
	for _, file := range files {
		content, err := os.ReadFile(file) //nolint:gosec // of the repository
		if err != nil {
			t.Fatal(err)
		}
		content = bytes.ReplaceAll(content, []byte(`client_id: ""`), []byte("client_id: "+id))
		content = bytes.ReplaceAll(content, []byte(`client_secret: ""`), []byte("client_secret: "+secret))
		changed := filepath.Join(r.suite.dir, filepath.Base(file))
		if err := os.WriteFile(changed, content, 0o600); err != nil { //nolint:gosec // in our folder
			t.Fatal(err)
		}
		if out, err := r.suite.Kubectl(t.Context(), "apply", "--filename="+changed).CombinedOutput(); err != nil {
			t.Fatalf("kubectl apply: %v\n%s", err, out)
		}
	}
	// As they are, they run an operator without a proxy. A pod that is replaced while its
	// program starts may not hear that it is to end.
	r.waitRollout(t)
	patch, err := r.manifestPatch()
	if err != nil {
		t.Fatal(err)
	}
	deployments := r.suite.Kube.AppsV1().Deployments(r.Namespace)
	if _, err := deployments.Patch(t.Context(), r.Deployment, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	r.waitRollout(t)
}

// waitRollout waits until the pods of the Deployment are as it says, and ready.
func (r *Release) waitRollout(t *testing.T) {
	t.Helper()
	out, err := r.suite.Kubectl(t.Context(), "--namespace="+r.Namespace, "rollout", "status", "deployment/"+r.Deployment, "--timeout="+patience.String()).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl rollout status: %v\n%s", err, out)
	}
}

// manifestPatch turns the values of the test environment into a patch of the Deployment.
func (r *Release) manifestPatch() ([]byte, error) {
	path, err := r.environment()
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(path) //nolint:gosec // written just now
	if err != nil {
		return nil, err
	}
	var values struct {
		LoginServer    string
		OperatorConfig struct {
			ExtraEnv, ExtraVolumes, ExtraVolumeMounts []map[string]any
			Image                                     struct{ Repository, Tag, PullPolicy string }
		}
	}
	if err := yaml.Unmarshal(content, &values); err != nil {
		return nil, err
	}
	config := values.OperatorConfig
	env := append(config.ExtraEnv,
		map[string]any{"name": "APISERVER_PROXY", "value": "true"},
		map[string]any{"name": "OPERATOR_LOGIN_SERVER", "value": values.LoginServer})
	return json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{
		"volumes": config.ExtraVolumes,
		"containers": []map[string]any{{
			"name": "operator", "image": config.Image.Repository + ":" + config.Image.Tag, "imagePullPolicy": config.Image.PullPolicy,
			"env": env, "volumeMounts": config.ExtraVolumeMounts,
		}},
	}}}})
}

// DeleteManifests deletes what Apply applied. The namespace goes with it.
func (r *Release) DeleteManifests(t *testing.T, files ...string) {
	t.Helper()
	for _, file := range files {
		if out, err := r.suite.Kubectl(t.Context(), "delete", "--filename="+file, "--wait=false").CombinedOutput(); err != nil {
			t.Errorf("kubectl delete: %v\n%s", err, out)
		}
	}
	Wait(t, "the namespace of the manifests to be gone", func(ctx context.Context) bool {
		_, err := r.suite.Kube.CoreV1().Namespaces().Get(ctx, r.Namespace, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
}

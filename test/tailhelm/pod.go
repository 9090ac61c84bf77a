// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailhelm

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// serviceAccountPath is where a container finds its ServiceAccount's token.
const serviceAccountPath = "/var/run/secrets/kubernetes.io/serviceaccount"

// tokenSeconds is the lifetime of the ServiceAccount token that a pod gets here:
// nothing refreshes it.
const tokenSeconds = 24 * 60 * 60

// pod does a kubelet's part for one pod.
type pod struct {
	client    kubernetes.Interface
	namespace string
	name      string
	uid       types.UID
	labels    map[string]string
	spec      corev1.PodSpec
	dir       string
	mounts    map[string]string // mount path -> folder on this machine
}

// PodOf returns what the first container of a Deployment's pods would run, with
// program in the place of its image: the arguments and environment of the pod
// template, its volumes as folders under dir (paths in arguments and environment
// are those folders' then), where the API server is, and a token of its
// ServiceAccount. The API server is that of config.
//
// What a pod finds under /var/run/secrets/kubernetes.io/serviceaccount is in
// dir/serviceaccount: a process cannot have a folder of its own at that path without
// root. KUBECONFIG leads there.
func PodOf(ctx context.Context, config *rest.Config, namespace, deployment, program, dir string) (Command, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return Command{}, err
	}
	d, err := client.AppsV1().Deployments(namespace).Get(ctx, deployment, metav1.GetOptions{})
	if err != nil {
		return Command{}, err
	}
	p := &pod{client: client, namespace: namespace, name: deployment + "-0", uid: uuid.NewUUID(), spec: d.Spec.Template.Spec, dir: dir, mounts: map[string]string{}}
	command, err := p.command(ctx, config, program)
	if err != nil {
		return Command{}, fmt.Errorf("pod of Deployment %s: %w", deployment, err)
	}
	return command, nil
}

// command returns what the first container runs.
func (p *pod) command(ctx context.Context, config *rest.Config, program string) (Command, error) {
	container := p.spec.Containers[0]
	if err := p.mount(ctx, container.VolumeMounts); err != nil {
		return Command{}, fmt.Errorf("volumes: %w", err)
	}
	command := Command{Path: program, Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + p.dir}}
	var references []string // as arguments refer to variables, and what they mean
	for _, variable := range container.Env {
		value, err := p.value(ctx, variable)
		if err != nil {
			return Command{}, fmt.Errorf("environment: %w", err)
		}
		command.Env = append(command.Env, variable.Name+"="+p.local(value))
		references = append(references, "$("+variable.Name+")", value)
	}
	for _, arg := range container.Args {
		command.Args = append(command.Args, p.local(strings.NewReplacer(references...).Replace(arg)))
	}
	access, err := p.access(ctx, config)
	if err != nil {
		return Command{}, fmt.Errorf("access to the API server: %w", err)
	}
	command.Env = append(command.Env, access...)
	return command, nil
}

// local replaces the mount path that a value begins with, or has after "=".
func (p *pod) local(value string) string {
	for mount, folder := range p.mounts {
		if strings.HasPrefix(value, mount) {
			return folder + strings.TrimPrefix(value, mount)
		}
		if name, path, ok := strings.Cut(value, "="); ok && strings.HasPrefix(path, mount) {
			return name + "=" + folder + strings.TrimPrefix(path, mount)
		}
	}
	return value
}

// value returns the value of an environment variable.
func (p *pod) value(ctx context.Context, v corev1.EnvVar) (string, error) {
	switch from := v.ValueFrom; {
	case from == nil:
		return v.Value, nil
	case from.FieldRef != nil:
		return p.field(from.FieldRef.FieldPath)
	case from.SecretKeyRef != nil:
		s, err := p.client.CoreV1().Secrets(p.namespace).Get(ctx, from.SecretKeyRef.Name, metav1.GetOptions{})
		if err != nil {
			return "", err
		}
		return string(s.Data[from.SecretKeyRef.Key]), nil
	}
	return "", fmt.Errorf("%s has a source that is not supported here", v.Name)
}

// field returns a field of the pod.
func (p *pod) field(path string) (string, error) {
	switch path {
	case "metadata.namespace":
		return p.namespace, nil
	case "metadata.name":
		return p.name, nil
	case "metadata.uid":
		return string(p.uid), nil
	case "spec.serviceAccountName":
		return p.spec.ServiceAccountName, nil
	}
	if label, ok := strings.CutPrefix(path, "metadata.labels['"); ok {
		return p.labels[strings.TrimSuffix(label, "']")], nil
	}
	return "", fmt.Errorf("the field %s is not supported here", path)
}

// mount makes the folders for the volumes of mounts.
func (p *pod) mount(ctx context.Context, mounts []corev1.VolumeMount) error {
	volumes := map[string]corev1.Volume{}
	for _, v := range p.spec.Volumes {
		volumes[v.Name] = v
	}
	for _, m := range mounts {
		if m.MountPath == serviceAccountPath {
			continue // see access
		}
		folder := filepath.Join(p.dir, "volumes", m.Name)
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return err
		}
		files, err := p.files(ctx, volumes[m.Name])
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
				return err
			}
		}
		p.mounts[m.MountPath] = folder
	}
	return nil
}

// files returns what is in a volume when a pod starts.
func (p *pod) files(ctx context.Context, v corev1.Volume) (map[string][]byte, error) {
	switch {
	case v.EmptyDir != nil:
		return nil, nil
	case v.Secret != nil:
		s, err := p.client.CoreV1().Secrets(p.namespace).Get(ctx, v.Secret.SecretName, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		if len(v.Secret.Items) == 0 {
			return maps.Clone(s.Data), nil
		}
		files := map[string][]byte{}
		for _, item := range v.Secret.Items {
			files[item.Path] = s.Data[item.Key]
		}
		return files, nil
	case v.ConfigMap != nil && len(v.ConfigMap.Items) == 0:
		m, err := p.client.CoreV1().ConfigMaps(p.namespace).Get(ctx, v.ConfigMap.Name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		files := maps.Clone(m.BinaryData)
		if files == nil {
			files = map[string][]byte{}
		}
		for name, content := range m.Data {
			files[name] = []byte(content)
		}
		return files, nil
	case v.Projected != nil:
		files := map[string][]byte{}
		for _, source := range v.Projected.Sources {
			if source.ServiceAccountToken == nil {
				return nil, fmt.Errorf("a projected source that is not supported here")
			}
			token, err := p.token(ctx, source.ServiceAccountToken.Audience)
			if err != nil {
				return nil, err
			}
			files[source.ServiceAccountToken.Path] = []byte(token)
		}
		return files, nil
	}
	return nil, fmt.Errorf("a kind of volume that is not supported here")
}

// token returns a token of the pod's ServiceAccount for an audience; "" is the
// API server.
func (p *pod) token(ctx context.Context, audience string) (string, error) {
	seconds := int64(tokenSeconds)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds}}
	if audience != "" {
		request.Spec.Audiences = []string{audience}
	}
	r, err := p.client.CoreV1().ServiceAccounts(p.namespace).CreateToken(ctx, p.spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return r.Status.Token, nil
}

// access writes the files of the pod's ServiceAccount, and returns the environment by
// which a process finds the API server and them. By the first two variables
// Tailscale's code knows that it is in a cluster, where state belongs into a Secret.
func (p *pod) access(ctx context.Context, config *rest.Config) ([]string, error) {
	server, err := url.Parse(config.Host)
	if err != nil {
		return nil, err
	}
	token, err := p.token(ctx, "")
	if err != nil {
		return nil, err
	}
	ca := config.CAData
	if len(ca) == 0 {
		if ca, err = os.ReadFile(config.CAFile); err != nil {
			return nil, err
		}
	}
	folder := filepath.Join(p.dir, "serviceaccount")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	for name, content := range map[string]string{"token": token, "ca.crt": string(ca), "namespace": p.namespace} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	const name = "pod"
	k := clientcmdapi.NewConfig()
	k.Clusters[name] = &clientcmdapi.Cluster{Server: config.Host, CertificateAuthority: filepath.Join(folder, "ca.crt")}
	k.AuthInfos[name] = &clientcmdapi.AuthInfo{TokenFile: filepath.Join(folder, "token")}
	k.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name, Namespace: p.namespace}
	k.CurrentContext = name
	path := filepath.Join(p.dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*k, path); err != nil {
		return nil, err
	}
	return []string{"KUBERNETES_SERVICE_HOST=" + server.Hostname(), "KUBERNETES_SERVICE_PORT=" + server.Port(), "KUBECONFIG=" + path}, nil
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/tailhelm/tailhelm/test/binary"
)

// URL is the address of the API server: https://127.0.0.1:port.
func (c *Cluster) URL() string { return "https://" + address(c.port) }

// Config is a copy of the administrator's configuration: user admin in the group
// system:masters, authenticated by a certificate.
func (c *Cluster) Config() *rest.Config { return rest.CopyConfig(c.config) }

// AnonymousConfig is a configuration without credentials.
func (c *Cluster) AnonymousConfig() *rest.Config { return rest.AnonymousClientConfig(c.config) }

// TokenConfig is a configuration that authenticates with a bearer token.
func (c *Cluster) TokenConfig(token string) *rest.Config {
	config := c.AnonymousConfig()
	config.BearerToken = token
	return config
}

// UserConfig is a configuration for the user and groups, authenticated by a
// certificate. name is a file name that no other certificate of the cluster has.
func (c *Cluster) UserConfig(name, user string, groups ...string) (*rest.Config, error) {
	cert, err := c.ca.client(name, user, groups...)
	if err != nil {
		return nil, err
	}
	return c.certificateConfig(cert), nil
}

// certificateConfig is a configuration that shows the certificate. Requests are not
// rate limited by the client.
func (c *Cluster) certificateConfig(cert pair) *rest.Config {
	return &rest.Config{
		Host:            c.URL(),
		TLSClientConfig: rest.TLSClientConfig{CAData: c.ca.pem, CertData: cert.cert, KeyData: cert.key},
		QPS:             -1,
	}
}

// CA is the certificate of the cluster's authority, in PEM.
func (c *Cluster) CA() []byte { return slices.Clone(c.ca.pem) }

// Client is the administrator's client.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// Kubeconfig is the path of the administrator's kubeconfig file.
func (c *Cluster) Kubeconfig() string { return c.kubeconfigPath("admin") }

func (c *Cluster) kubeconfigPath(name string) string { return c.path("kubeconfig", name+".yaml") }

// KubeconfigFor writes a kubeconfig file with the credentials of config and returns
// its path. The file, its cluster, user and context are called name. Proxy and
// transport wrappers of config are functions and do not go into a file.
func (c *Cluster) KubeconfigFor(name string, config *rest.Config) (string, error) {
	file := clientcmdapi.NewConfig()
	file.CurrentContext = name
	file.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	file.Clusters[name] = &clientcmdapi.Cluster{
		Server:                   config.Host + config.APIPath,
		CertificateAuthorityData: config.CAData,
		CertificateAuthority:     config.CAFile,
		InsecureSkipTLSVerify:    config.Insecure,
		TLSServerName:            config.ServerName,
	}
	file.AuthInfos[name] = &clientcmdapi.AuthInfo{
		ClientCertificateData: config.CertData,
		ClientCertificate:     config.CertFile,
		ClientKeyData:         config.KeyData,
		ClientKey:             config.KeyFile,
		Token:                 config.BearerToken,
		TokenFile:             config.BearerTokenFile,
		Username:              config.Username,
		Password:              config.Password,
		Impersonate:           config.Impersonate.UserName,
		ImpersonateUID:        config.Impersonate.UID,
		ImpersonateGroups:     config.Impersonate.Groups,
		ImpersonateUserExtra:  config.Impersonate.Extra,
	}
	path := c.kubeconfigPath(name)
	if err := clientcmd.WriteToFile(*file, path); err != nil {
		return "", fmt.Errorf("kubeconfig %s: %w", name, err)
	}
	return path, nil
}

// ServiceAccountToken asks the API server for a token of a ServiceAccount, as
// "kubectl create token" does. It lives for an hour.
func (c *Cluster) ServiceAccountToken(ctx context.Context, namespace, name string) (string, error) {
	request, err := c.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("token of ServiceAccount %s/%s: %w", namespace, name, err)
	}
	return request.Status.Token, nil
}

// Kubectl is a command that runs the pinned kubectl as the administrator; to run it
// as another, give it --kubeconfig. It has a home of its own, so that no setting or
// cache of the user's counts. kubectl is built if need be; if that fails, so does the
// command when it runs.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	return c.command(ctx, kubectl, args)
}

// Helm is a command that runs the pinned helm as the administrator, with home and
// folders of its own. helm is built if need be; if that fails, so does the command
// when it runs.
func (c *Cluster) Helm(ctx context.Context, args ...string) *exec.Cmd {
	return c.command(ctx, helm, args)
}

func (c *Cluster) command(ctx context.Context, program binary.Program, args []string) *exec.Cmd {
	path, err := binary.Build(ctx, program)
	cmd := exec.CommandContext(ctx, path, args...) //nolint:gosec // The program is ours, the arguments the test's.
	if err != nil {
		cmd.Err = err
	}
	cmd.Env = c.environ()
	return cmd
}

// environ is this process's environment without what steers kubectl and helm, and
// with what points them at the cluster.
func (c *Cluster) environ() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return name == "HOME" || name == "KUBECONFIG" || name == "KUBERC" ||
			strings.HasPrefix(name, "KUBECTL_") || strings.HasPrefix(name, "HELM_") || strings.HasPrefix(name, "XDG_")
	})
	home := c.path("home")
	return append(env, "HOME="+home, "KUBECONFIG="+c.Kubeconfig(), "KUBERC=off",
		"HELM_CACHE_HOME="+home+"/helm/cache", "HELM_CONFIG_HOME="+home+"/helm/config", "HELM_DATA_HOME="+home+"/helm/data")
}

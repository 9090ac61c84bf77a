// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailhelm

import (
	"net/url"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// WriteKubeconfig writes to path what "tailscale configure kubeconfig" writes for
// the proxy at fqdn: the name for cluster and context, a user tailscale-auth with
// the token "unused". Beside that it holds what a device of a test tailnet needs:
// the certificates to trust, and the SOCKS5 proxy that leads into the tailnet.
func WriteKubeconfig(path, fqdn string, roots []byte, via *url.URL) error {
	const user = "tailscale-auth"
	k := clientcmdapi.NewConfig()
	k.Clusters[fqdn] = &clientcmdapi.Cluster{Server: "https://" + fqdn, CertificateAuthorityData: roots, ProxyURL: via.String()}
	k.AuthInfos[user] = &clientcmdapi.AuthInfo{Token: "unused"}
	k.Contexts[fqdn] = &clientcmdapi.Context{Cluster: fqdn, AuthInfo: user}
	k.CurrentContext = fqdn
	return clientcmd.WriteToFile(*k, path)
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"tailscale.com/types/views"
)

// KeyStaticEndpoints is the key of a Secret with the addresses at which a device can
// be reached from outside its network: "ip:port,ip:port".
const KeyStaticEndpoints = "static-endpoints"

// endpointsInterval is how often the addresses are looked for. They change when nodes
// come and go.
const endpointsInterval = 15 * time.Second

// ParseEndpoints reads the value of [KeyStaticEndpoints].
func ParseEndpoints(value string) ([]netip.AddrPort, error) {
	var endpoints []netip.AddrPort
	for _, part := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' }) {
		endpoint, err := netip.ParseAddrPort(part)
		if err != nil {
			return nil, fmt.Errorf("static endpoint %q: %w", part, err)
		}
		endpoints = append(endpoints, endpoint)
	}
	return endpoints, nil
}

// FollowEndpoints makes the node tell its peers the addresses that a Secret holds
// under [KeyStaticEndpoints], until ctx is done. The node has been started. It needs get
// on the Secret.
func (n *Node) FollowEndpoints(ctx context.Context, secrets typedcorev1.SecretInterface, name string) {
	told := n.config.Endpoints
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		secret, err := secrets.Get(ctx, name, metav1.GetOptions{})
		var endpoints []netip.AddrPort
		if err == nil {
			endpoints, err = ParseEndpoints(string(secret.Data[KeyStaticEndpoints]))
		}
		if err != nil {
			n.config.Log.WarnContext(ctx, "reading the static endpoints", "secret", name, "error", err)
			return
		}
		if slices.Equal(endpoints, told) {
			return
		}
		n.server.Sys().MagicSock.Get().SetStaticEndpoints(views.SliceOf(endpoints))
		told = endpoints
		n.config.Log.InfoContext(ctx, "static endpoints", "endpoints", endpoints)
	}, endpointsInterval)
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"tailscale.com/control/ts2021"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// controlServer is the control server of a node's tailnet, known by its public key.
type controlServer struct{ noise *ts2021.Client }

// controlServer looks up the control server's public key, as Tailscale's code does at each
// login, and returns the control server with that key. Nothing else can answer for it.
func (n *Node) controlServer(ctx context.Context) (*controlServer, error) {
	address := cmp.Or(n.config.ControlURL, ipn.DefaultControlURL)
	serverKey, err := fetchControlKey(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("the public key of the control server %s: %w", address, err)
	}
	text, err := n.config.Store.ReadState(ipn.MachineKeyStateKey)
	if err != nil {
		return nil, fmt.Errorf("the machine key in the device's state: %w", err)
	}
	var machine key.MachinePrivate
	if err := machine.UnmarshalText(text); err != nil {
		return nil, fmt.Errorf("the machine key in the device's state: %w", err)
	}
	sys := n.server.Sys()
	noise, err := ts2021.NewClient(ts2021.ClientOpts{
		ServerURL: address, ServerPubKey: serverKey, PrivKey: machine,
		Dialer: sys.Dialer.Get(), NetMon: sys.NetMon.Get(), Logf: debugf(n.config.Log),
	})
	if err != nil {
		return nil, fmt.Errorf("the control server %s: %w", address, err)
	}
	return &controlServer{noise: noise}, nil
}

// fetchControlKey asks the control server at an address for its public key.
func fetchControlKey(ctx context.Context, address string) (key.MachinePublic, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s/key?v=%d", address, tailcfg.CurrentCapabilityVersion), nil)
	if err != nil {
		return key.MachinePublic{}, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return key.MachinePublic{}, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return key.MachinePublic{}, fmt.Errorf("answered %s", response.Status)
	}
	var keys tailcfg.OverTLSPublicKeyResponse
	if err := json.NewDecoder(io.LimitReader(response.Body, 64<<10)).Decode(&keys); err != nil {
		return key.MachinePublic{}, err
	}
	return keys.PublicKey, nil
}

// knows reports whether the control server knows a node key of this machine. It asks for
// the netmap as Tailscale's code does: 200 is a netmap, and 404 says that there is no such
// node. Both come through the encrypted channel that only the holder of the control
// server's key can speak on. Everything else, from whoever it may come, is an error.
//
// The request is one for a stream, which control servers take as read-only
// ([tailcfg.MapRequest]), and ends with the head of the answer.
func (c *controlServer) knows(ctx context.Context, node key.NodePublic) (bool, error) {
	// The next question gets a connection of its own: it may have to go another way.
	defer c.noise.CloseIdleConnections()
	response, err := c.noise.Post(ctx, "/machine/map", node, &tailcfg.MapRequest{
		Version: tailcfg.CurrentCapabilityVersion, NodeKey: node, Stream: true, Hostinfo: &tailcfg.Hostinfo{},
	})
	if err != nil {
		return false, err
	}
	defer func() { _ = response.Body.Close() }()
	switch response.StatusCode {
	case http.StatusOK:
		return true, nil
	case http.StatusNotFound:
		return false, nil
	}
	return false, fmt.Errorf("the control server answers %s", response.Status)
}

// close ends connections.
func (c *controlServer) close() { _ = c.noise.Close() }

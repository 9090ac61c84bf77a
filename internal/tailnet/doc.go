// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package tailnet makes this process a device of a tailnet.
//
// A [Node] joins with tsnet, stays joined, and answers who its peers are:
//
//   - Joining never ends the process. Whatever keeps the node off the tailnet (a
//     revoked key, a wrong tag, device approval, a control server that is away) is
//     told by [Node.Ready] in a sentence that says what to do, and tried again.
//   - Auth keys come from a [AuthKeys]: a fixed key, or one minted by the Tailscale
//     API for each login, with an OAuth client or a workload identity. A node that
//     was logged out, whose key expired or which was removed from the tailnet logs
//     itself in again.
//   - State is in a Kubernetes Secret ([SecretStore]) or in a folder, so that a
//     restart is the same device with the same name and certificate.
//   - [Node.Identify] asks WhoIs. It is called for each request, so answers are
//     kept until the tailnet changes: the node's packet filter (where grants live)
//     is compared at each call, other changes are told by the IPN bus, and no answer
//     is kept longer than two seconds.
//   - Certificates ([Certificates]) are in memory before the first handshake and
//     renewed in the background. No handshake fetches or parses anything.
//   - A node can be a host of a Tailscale [Service], beside other nodes. Its connections
//     come from this process's own network stack and carry the caller's address. Hosts
//     share one certificate ([SharedCertificates]), which one of them orders.
//   - What others must know of a node is in its state Secret ([Node.Report]), where a
//     node without a working auth key asks for another, too ([IssuedAuthKeys]).
//
// # Trade-offs
//
// WhoIs is asked by address without a port. Traffic that another process on this
// machine forwards is thereby nobody's, which is what the proxy wants: only a
// connection of a peer of the tailnet says who is calling.
package tailnet

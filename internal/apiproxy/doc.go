// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package apiproxy carries requests from devices of a tailnet to a Kubernetes
// API server.
//
// # What it does
//
// A request passes these steps, in this order, and a step that is in doubt
// refuses it:
//
//  1. identify: who is the peer of this connection? [Peers] is asked for each
//     request, by the connection's address and nothing else.
//  2. classify: what is asked for, by the API server's own RequestInfo; and is it
//     an ordinary request, a watch, or a stream (exec, attach, port-forward, logs -f)?
//  3. record: have a recorder take a session (exec, attach) by who and what command, if
//     the caller's grants name any. See package recording.
//  4. rewrite: drop what the client may not say, say who the caller is.
//  5. forward: over HTTP/2 for requests and watches, over HTTP/1.1 for upgrades and for
//     what pods, Services and nodes answer.
//
// In [ModeAuth] the request carries the proxy's credentials and impersonates the
// caller, so that Kubernetes RBAC decides. In [ModeNoAuth] the proxy gives
// connectivity only: the client's own credentials pass through untouched and the
// proxy has none.
//
// # Threat model
//
// Clients are authenticated by WireGuard but otherwise hostile: every byte of a
// request may be chosen to become somebody else. Therefore:
//
//   - Headers never identify. Those that claim an identity (Authorization,
//     Impersonate-*, X-Remote-*, Tailscale-*, forwarding headers, bearer tokens in
//     WebSocket subprotocols) do not pass in auth mode. Neither does Audit-Id: the proxy
//     chooses under which ID its own log and the API server's audit log have a request.
//     The one thing that a client can ask for is to be itself in fewer of its groups
//     (see narrow).
//   - Impersonation fails open in Kubernetes: a request that lacks Impersonate-User
//     acts as the proxy itself. So the last thing before the credentials is a
//     transport that compares the request with the identity that was established
//     for it and refuses to send anything else; and the credentials belong to a
//     ServiceAccount whose only power is to impersonate.
//   - Asking once is not enough: a watch or an exec lives for hours. Open requests
//     are asked about again, and end when the answer changes.
//   - Slow or huge headers, idle connections, connections and open requests of one
//     peer, and what is held for a client that does not read are bounded.
//   - A client chooses how it asks for a session, and when it leaves. What the API server
//     would take for one is one, what cannot be recorded is refused to a caller with
//     recorders, and an upgrade cannot bring the session in its body. Another transport
//     sends no session that must be recorded and that no recorder has taken.
//   - A browser on a caller's device is the caller, too. Pages of other sites, and
//     pages that pods serve through the API, must not act as the caller.
//
// Each request is a line in the log, or each that changes something (see [AccessLog]). Sessions
// and refusals always are.
//
// A refusal is a metav1.Status in the media type that the client accepts, with a
// sentence that says what to do: kubectl prints it. Its header Audit-Id finds its line in
// the log.
//
// # Trade-offs
//
// HTTP/2 to the API server shares few connections between many callers. Requests
// that GOAWAY turns back are sent again when the API server has not seen them; for
// that the first [replayLimit] bytes of a body are kept until it is answered.
// Upgrades need HTTP/1.1, and a connection each that no other caller gets. So has what
// pods, Services and nodes answer through the API server: an answer that breaks a
// connection must not end what others have open.
//
// Responses are not decoded: compression, protobuf and tables pass as they are.
package apiproxy

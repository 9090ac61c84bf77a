// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package tailnet runs a whole tailnet on one machine, for tests.
//
// It needs no account, no root and no network: the control server, a relay,
// MagicDNS, a certificate authority and the Tailscale HTTP API run in the
// process that calls [Start] (the authority's core as a child process), and
// devices join them as they would join Tailscale's. Devices of the same process
// come from [Tailnet.Device]; other processes get an auth key, the URL and
// [Tailnet.Environ]. The program cmd/testtailnet is the same for tests that are
// not written in Go.
//
// # What is real and what is not
//
// Real are the parts whose behavior a test is about: the nodes (tsnet, with
// WireGuard, disco, netstack and WhoIs), the DERP server, the protocols between
// node and control server (Noise, HTTP/2, tailcfg's messages), packet filters,
// and ACME, by Let's Encrypt's test server Pebble, which validates DNS-01
// challenges for good.
//
// Stand-ins are the control server and the HTTP API. They are written for this
// package on Tailscale's public libraries, after the observable behavior of
// Tailscale's service, and know only what the following says.
//
//   - Devices belong to a user or carry tags, by their auth key ([Identity]).
//     Keys are checked as the service checks them: unknown, expired, revoked
//     and used ones are refused in the service's words, and a restart with kept
//     state needs none.
//   - Grants put capabilities into the packet filter of the destination, for
//     each source apart ([Tailnet.SetGrants]). The network is open unless it is
//     restricted, see [Options.RestrictNetwork]. Recorders, which grants name by
//     tags, are made addresses.
//   - Changes reach connected devices at once. Removal, expiry, logout and
//     coming online are told to peers as the service tells them.
//   - A device may get certificates for its own name and for those of the
//     Services that it is a host of, see [Tailnet.SetHTTPS].
//   - Tailscale Services have a name and addresses that go to one of their
//     hosts, see below.
//   - The HTTP API has OAuth clients, workload identity federation, auth keys,
//     devices and Services. OAuth scopes are not checked.
//
// There is no interactive login, device approval, tailnet lock, Funnel, SSH,
// subnet router or exit node, and an ephemeral device is forgotten when it logs
// out, not when it is silent for long. The root zone of DNS is not involved:
// the authority asks a server of this package.
//
// # Services
//
// A Service is made by the HTTP API or [Tailnet.SetService]. Devices become its
// hosts by a serve configuration for it. Tagged ones are approved by the
// policy's autoApprovers, see [Tailnet.SetAutoApprovers], or one by one by
// [Tailnet.SetServiceApproval]. An approved host learns the Service's addresses
// and may get certificates for its name. Clients are sent to it when it
// advertises the Service besides, by AdvertiseServices in its preferences.
// (tsnet's ListenService does both.)
//
// All clients are sent to the same host. It is another one's turn when that one
// withdraws, goes offline or is no longer approved, and not before. Clients that
// were connected to it have to connect again. The choice among several hosts by
// distance, and the check that a host serves the Service's ports, are not
// modeled. [Tailnet.WaitService] shows the control server's side of a change,
// [Device.WaitServiceHost] that of a client.
//
// Grants for "svc:x" show in WhoIsForService and WhoIsForIP on the hosts, those
// for the hosts themselves in WhoIs.
//
// # Faults
//
// [Tailnet.Fail] makes requests to any of the servers fail, a number of times
// or until further notice, and [Tailnet.Calls] counts them. [Tailnet.Remove],
// [Tailnet.Expire], [Tailnet.SetIdentity], [Tailnet.SetHTTPS],
// [Tailnet.DeleteService] and [Tailnet.StopControl] do what administrators and outages do.
//
// # Time
//
// On two cores a tailnet starts in some 5 ms, 200 ms with the authority; a
// device is up in 50 ms and has its certificate a second after it asked; a
// change of grants shows in WhoIs after some 10 ms. The first start on a machine
// builds Pebble, which takes several seconds. A node that finds the control
// server down takes ten seconds for each attempt to reach it.
//
// # Limits
//
// The process's ACME directory is a setting of the process: when several
// tailnets run in it at a time, only the one started last issues certificates
// to its nodes, see [Tailnet.SetupProcess]. [Start] also makes
// [net/http.DefaultTransport] trust one more certificate authority, because
// Tailscale's ACME client uses that transport.
//
// Nothing leaves the machine, with one exception: before it publishes the
// answer to a challenge, a node looks the challenge's name up with the system's
// resolver.
//
// Nodes need a network interface that is not loopback, even if they never use
// it. In a network namespace of its own a test needs a veth pair, for example.
package tailnet

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package kubernetes runs a real Kubernetes control plane for tests: etcd and
// kube-apiserver, with kubectl and helm to talk to it. It needs no container engine,
// no root and no network but a Go module proxy.
//
//	cluster := kubernetes.New(t, kubernetes.Options{})
//	out, err := cluster.Kubectl(ctx, "get", "namespaces").CombinedOutput()
//
// A fake API server would answer what its author believes. What this project has to
// know is what the API server itself makes of impersonation, upgrades, HTTP/2 and
// restarts, and what kubectl makes of the answers. So all programs are the real ones,
// built once from pinned modules (see package binary; [Build] does it ahead of time).
//
// # What is there
//
//   - RBAC and the Node authorizer; NodeRestriction, OwnerReferencesPermissionEnforcement (as
//     on OpenShift) and the default admission plugins.
//   - ServiceAccount tokens with a real issuer: [Cluster.ServiceAccountToken].
//   - An administrator, and users by client certificate: [Cluster.UserConfig].
//   - The audit log, with the metadata of each request: who authenticated, whom the
//     request impersonated, what the answer was. [Cluster.WaitForAuditEvent].
//   - An API server that stops, dies and comes back on the same port with the same
//     data: [Cluster.StopAPIServer], [Cluster.KillAPIServer], [Cluster.StartAPIServer].
//   - On demand kube-controller-manager ([Options]) and stand-in nodes for exec, logs
//     and the like ([Cluster.StartKubelet]).
//
// # What is not
//
// There is no scheduler (a stand-in node can bind Pods to itself), no network of Pods
// or Services, and no aggregation. Without kube-controller-manager nothing makes Pods
// of Deployments and no namespace is ever gone after its deletion; each namespace
// gets its default ServiceAccount all the same, because no Pod is admitted without.
// etcd does not sync its files: data survives the API server, not the machine.
//
// # Safety
//
// Everything listens on 127.0.0.1 and asks for certificates that were made for this
// cluster alone; so parallel clusters cannot mix, even if one takes a port that
// another just lost. Keys lie in the cluster's folder, which only its owner can read.
// Processes end with [Cluster.Close], and, on Linux, with this process, however it ends.
package kubernetes

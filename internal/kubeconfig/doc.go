// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package kubeconfig writes what kubectl needs to use a proxy: a cluster, a user and a
// context.
//
// The entries have the names that "tailscale configure kubeconfig" gives them, so that the
// two commands replace each other: the cluster and the context are called as the proxy's
// full name, the user of all proxies in mode auth "tailscale-auth". Everything else in the
// file is kept, and client-go writes it, under the lock that kubectl respects.
package kubeconfig

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds the custom resources of the group tailscale.com: ProxyGroup, a
// group of replicas that serve kube-apiserver on a tailnet under one name; ProxyClass, what
// the pods of such groups look like; and Recorder, which keeps recordings of sessions.
//
// Names, fields and defaults are those of the official operator, so that its manifests apply
// as they are. What cannot work is refused by the API server, by rules in the types' markers:
// a sentence to the person who applies it is worth more than a condition that nobody reads.
// Fields that mean nothing to these pods are accepted, and [WithoutEffect] and
// [RecorderWithoutEffect] name them.
//
// The CustomResourceDefinitions in crds, and the copies that the chart installs, are
// generated from this package: make generate.
//
// +kubebuilder:object:generate=true
// +groupName=tailscale.com
package v1alpha1

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"

	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// Labels of all objects of a group, as the official operator has them.
const (
	labelManaged    = "tailscale.com/managed"
	labelParentType = "tailscale.com/parent-resource-type"
	labelParent     = "tailscale.com/parent-resource"
	labelSecretType = "tailscale.com/secret-type" //nolint:gosec // the name of a label, no secret
)

// finalizer keeps a group until its objects in the tailnet are gone. The official operator
// has the same one, and another besides for groups of this type.
const (
	finalizer         = "tailscale.com/finalizer"
	officialFinalizer = "tailscale.com/kube-apiserver-finalizer"
)

// Annotations of a ProxyGroup by which people decide what the controller must not
// decide alone, or by which it notes what it has decided once.
const (
	// annotationOperator is the name of the operator that the group is for. A group without
	// it gets the name of the operator that sees it first.
	annotationOperator = "tailscale.com/operator"
	// annotationTags are the default tags, "tag:a,tag:b", of when a group without tags of its
	// own was first seen: its devices keep theirs, whatever the default becomes.
	annotationTags = "tailscale.com/tags"
	// annotationTakeOver names a Service ("svc:kube") that is taken over from an owner
	// that is gone for good.
	annotationTakeOver = "tailscale.com/take-over-service"
	// annotationAbandon, "true" on a group that is being deleted, leaves what is in the
	// tailnet there.
	annotationAbandon = "tailscale.com/abandon-tailnet-objects"
)

// Annotations of a replica's config Secret.
const (
	annotationKeyID       = "tailscale.com/auth-key-id"
	annotationKeyEnds     = "tailscale.com/auth-key-ends"
	annotationKeyReplaces = "tailscale.com/auth-key-replaces-device"
	// annotationKeyMinted is when the last auth key was minted, and annotationKeyBudget when
	// the replica may have as many at once as ever again: see [fleet.mayMint].
	annotationKeyMinted = "tailscale.com/auth-key-minted"
	annotationKeyBudget = "tailscale.com/auth-key-budget-full"
	// annotationIdentities are what the replica's device had on the tailnet.
	annotationIdentities = "tailscale.com/device-identities"
)

// Keys of a replica's config Secret.
const (
	keyAuthKey         = tailnet.FieldAuthKey
	keyStaticEndpoints = tailnet.KeyStaticEndpoints
)

// Names of a group's Secrets.
func stateSecretName(group string, ordinal int) string { return fmt.Sprintf("%s-%d", group, ordinal) }

func configSecretName(group string, ordinal int) string {
	return stateSecretName(group, ordinal) + "-config"
}

func tlsSecretName(group string) string { return group + "-tls" }

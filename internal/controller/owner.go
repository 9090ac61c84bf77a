// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/types"
)

// ownerAnnotation of a Tailscale Service says whose it is, in the official operator's
// form.
const ownerAnnotation = "tailscale.com/owner-references"

// owners is the value of ownerAnnotation.
type owners struct {
	Refs []owner `json:"ownerRefs,omitempty"`
}

// owner is one owner of a Tailscale Service.
type owner struct {
	// OperatorID identifies the cluster: the UID of its namespace kube-system, which
	// outlives every state of the operator. The official operator has the ID of its
	// device here.
	OperatorID string    `json:"operatorID,omitempty"`
	Resource   *resource `json:"resource,omitempty"`
}

// resource is a custom resource that owns a Tailscale Service.
type resource struct {
	Kind string    `json:"kind,omitempty"`
	Name string    `json:"name,omitempty"`
	UID  types.UID `json:"uid,omitempty"`
}

const (
	kindProxyGroup = "ProxyGroup"
	kindProxyClass = "ProxyClass"
	kindRecorder   = "Recorder"
)

// String names the owner for people.
func (o owner) String() string {
	if o.Resource == nil {
		return fmt.Sprintf("the operator with the ID %s", o.OperatorID)
	}
	return fmt.Sprintf("%s %s of the cluster with the ID %s", o.Resource.Kind, o.Resource.Name, o.OperatorID)
}

// annotation is the annotation of a Service that o owns alone.
func (o owner) annotation() string {
	b, err := json.Marshal(owners{Refs: []owner{o}})
	if err != nil {
		panic(err) // strings always encode
	}
	return string(b)
}

// claim is what a Service's annotations say to one that wants the Service.
type claim int

const (
	claimOurs      claim = iota // the group's own
	claimAdoptable              // that of an owner which is gone
	claimUnmarked               // nobody's, as far as the annotation says
	claimForeign                // somebody else's
)

// claimOf says whose a Service is to the group that self describes, and names the
// owner if it is another. gone reports whether a group of this cluster does not exist
// any more.
func claimOf(annotations map[string]string, self owner, gone func(resource) bool) (claim, string) {
	value, ok := annotations[ownerAnnotation]
	if !ok || value == "" {
		return claimUnmarked, "whoever made it by hand"
	}
	var found owners
	if err := json.Unmarshal([]byte(value), &found); err != nil || len(found.Refs) == 0 {
		return claimUnmarked, "somebody whose annotation " + ownerAnnotation + " cannot be read"
	}
	if len(found.Refs) > 1 {
		other := found.Refs[0]
		if other.Resource != nil && other.Resource.UID == self.Resource.UID {
			other = found.Refs[1]
		}
		return claimForeign, other.String() + ", among others"
	}
	return claimOfOne(found.Refs[0], self, gone)
}

// claimOfOne is claimOf for a Service with one owner.
func claimOfOne(o, self owner, gone func(resource) bool) (claim, string) {
	switch r := o.Resource; {
	case r == nil || r.Kind != self.Resource.Kind:
		return claimForeign, o.String()
	case r.UID == self.Resource.UID && o.OperatorID == self.OperatorID:
		return claimOurs, ""
	case r.UID == self.Resource.UID:
		// A UID is never given twice: this is the same group, under another operator or
		// in a cluster that was restored from a backup.
		return claimAdoptable, ""
	case o.OperatorID != self.OperatorID:
		return claimForeign, o.String()
	case gone(*r):
		return claimAdoptable, ""
	}
	return claimForeign, o.String()
}

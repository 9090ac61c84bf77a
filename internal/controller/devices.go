// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tailhelm/tailhelm/internal/tailapi"
	"github.com/tailhelm/tailhelm/internal/tailnet"
)

const (
	// maxIdentities is how many identities of a replica's device are remembered.
	maxIdentities = 8
	// spareDevices is how many devices of earlier replicas may be noted at a time, besides
	// two for each replica. Replicas tell IDs, so there must be a bound.
	spareDevices = 50
)

// identity is what a replica's device has on the tailnet, by the spec as it is now.
func (f *fleet) identity(ordinal int) tailapi.DeviceIdentity {
	return tailapi.DeviceIdentity{Hostname: fmt.Sprintf("%s-%d", f.parent.HostnamePrefix(), ordinal), Tags: f.tags}
}

// identities are what a replica's device may have on the tailnet: that of the spec, and
// those of the spec's earlier forms, which the config Secret tells. Replicas cannot write
// that Secret.
func (f *fleet) identities(r replica) []tailapi.DeviceIdentity {
	return append(notedIdentities(r.config), f.identity(r.ordinal))
}

func notedIdentities(config *corev1.Secret) []tailapi.DeviceIdentity {
	if config == nil {
		return nil
	}
	var noted []tailapi.DeviceIdentity
	if err := json.Unmarshal([]byte(config.Annotations[annotationIdentities]), &noted); err != nil {
		return nil
	}
	return noted
}

// identitiesWith returns the annotation of a config Secret that notes one more identity.
func identitiesWith(config *corev1.Secret, is tailapi.DeviceIdentity) string {
	noted := notedIdentities(config)
	if !slices.ContainsFunc(noted, is.Equal) {
		noted = append(noted, is)
	}
	b, err := json.Marshal(noted[max(0, len(noted)-maxIdentities):])
	if err != nil {
		panic(err) // strings always encode
	}
	return string(b)
}

// own reports whether a device can be one of the parent's.
func (f *fleet) own(is tailapi.DeviceIdentity) bool {
	if ordinal, ok := ordinalOf(f.parent.HostnamePrefix(), is.Hostname); ok && is.Equal(f.identity(ordinal)) {
		return true
	}
	return slices.ContainsFunc(f.replicas, func(r replica) bool { return slices.ContainsFunc(f.identities(r), is.Equal) })
}

// deleteDevice deletes a device that was noted, if the tailnet says that it is one that
// own accepts, and returns a [tailapi.NotOwnError] otherwise: it is a replica that told the
// ID, and who holds a replica could tell any.
func (f *fleet) deleteDevice(ctx context.Context, id string, own func(tailapi.DeviceIdentity) bool) error {
	deleted := false
	err := f.breaker.do(func(api *tailapi.Client) error {
		d, err := api.OwnDevice(ctx, id, own)
		if err != nil || d == nil {
			return err
		}
		deleted = true
		return api.DeleteDevice(ctx, *d)
	})
	if err != nil {
		return err
	}
	if deleted {
		f.event(corev1.EventTypeNormal, "DeviceDeleted", "DeleteDevice", "device %s was deleted from the tailnet", id)
	}
	f.forgetDevice(id)
	return nil
}

// deleteNoted deletes a device that was noted, or drops the note when the device is none of
// the parent's.
func (f *fleet) deleteNoted(ctx context.Context, id string) error {
	err := f.deleteDevice(ctx, id, f.own)
	var refused *tailapi.NotOwnError
	if !errors.As(err, &refused) {
		return err
	}
	f.event(corev1.EventTypeWarning, "DeviceNotDeleted", "DeleteDevice",
		"%v, which is not what a replica's device has, and was not deleted: if it is this %s's, delete it in the admin console; if not, a replica lied: replace it, and look who had access to it", refused, f.kind.name)
	f.forgetDevice(id)
	return nil
}

// noteDevices notes the devices that the replicas' Secrets name: a Secret can be lost.
func (f *fleet) noteDevices(ctx context.Context) error {
	t := f.tailnetObjects()
	for _, r := range f.replicas {
		id := r.deviceID()
		if id == "" || slices.Contains(t.Devices, id) {
			continue
		}
		if len(t.Devices) >= 2*len(f.replicas)+spareDevices {
			f.config.Log.WarnContext(ctx, "a device is not noted, because too many are: the Tailscale API is away for long, or a replica lies", f.kind.label, f.parent.GetName(), "device", id)
			continue
		}
		t.Devices = append(t.Devices, id)
	}
	return f.writeStatus(ctx)
}

// forgetDevice removes the note of a device that is gone, or not ours.
func (f *fleet) forgetDevice(id string) {
	t := f.tailnetObjects()
	t.Devices = slices.DeleteFunc(t.Devices, func(other string) bool { return other == id })
}

// tidyDevices deletes devices that are noted and no replica's any more. It waits until
// all replicas have told which device is theirs: one whose Secret was lost is about to.
func (f *fleet) tidyDevices(ctx context.Context) error {
	keep := map[string]bool{}
	for i, r := range f.replicas {
		id := r.deviceID()
		if id == "" && i < len(f.wanted()) {
			return nil
		}
		keep[id] = true
	}
	for _, id := range slices.Clone(f.tailnetObjects().Devices) {
		if keep[id] {
			continue
		}
		if err := f.deleteNoted(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// deviceID returns the stable ID of the replica's device, or "".
func (r replica) deviceID() string {
	if id := r.field(tailnet.FieldDeviceID); tailapi.ValidDeviceID(id) {
		return id
	}
	return ""
}

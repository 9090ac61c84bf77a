// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailapi

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"
	tailscale "tailscale.com/client/tailscale/v2"
)

// deviceID is the form of a device's stable ID. Nothing else becomes a part of a path of
// the API.
var deviceID = regexp.MustCompile(`^n[0-9A-Za-z]{1,63}$`)

// ValidDeviceID reports whether id has the form of a device's stable ID.
func ValidDeviceID(id string) bool { return deviceID.MatchString(id) }

// DeviceIdentity is what the tailnet says of a device, and what tells whose it is.
type DeviceIdentity struct {
	// Hostname is the name that the device asked for.
	Hostname string `json:"hostname"`
	// Tags are those that it has.
	Tags []string `json:"tags"`
}

// Equal reports whether two identities are the same, whatever the order of tags.
func (d DeviceIdentity) Equal(other DeviceIdentity) bool {
	return d.Hostname == other.Hostname && sets.New(d.Tags...).Equal(sets.New(other.Tags...))
}

// OwnDevice is a device that the tailnet says is the caller's: one that may be deleted.
// An ID alone may not be, because those who tell IDs are not to be trusted. Only
// [Client.OwnDevice] makes one.
type OwnDevice struct{ id string }

// NotOwnError is a device that is not the caller's.
type NotOwnError struct {
	// ID is the device's.
	ID string
	// Is is the device's identity; it is empty when ID is no ID at all.
	Is DeviceIdentity
}

// Error says what the device is.
func (e *NotOwnError) Error() string {
	switch {
	case !ValidDeviceID(e.ID):
		return fmt.Sprintf("%.80q is no ID of a device", e.ID)
	case len(e.Is.Tags) == 0:
		return fmt.Sprintf("device %s (%.80q) has no tags", e.ID, e.Is.Hostname)
	}
	return fmt.Sprintf("device %s is %.80q with %.200s", e.ID, e.Is.Hostname, strings.Join(e.Is.Tags, ", "))
}

// OwnDevice returns the device with a stable ID, or nil when there is none. It returns a
// [NotOwnError] unless own accepts what the tailnet says of it. A device without tags is
// a person's, and nobody's to delete here.
func (c *Client) OwnDevice(ctx context.Context, id string, own func(DeviceIdentity) bool) (*OwnDevice, error) {
	if !ValidDeviceID(id) {
		return nil, &NotOwnError{ID: id}
	}
	var d *tailscale.Device
	err := c.call(ctx, "reading device "+id, scopeDevices, func(ctx context.Context, api *tailscale.Client) (err error) {
		d, err = api.Devices().Get(ctx, id)
		return err
	})
	if IsNotFound(err) {
		return nil, nil //nolint:nilnil // there is none, and that is an answer
	} else if err != nil {
		return nil, err
	}
	is := DeviceIdentity{Hostname: d.Hostname, Tags: sets.List(sets.New(d.Tags...))}
	if d.NodeID != id || len(is.Tags) == 0 || !own(is) {
		return nil, &NotOwnError{ID: id, Is: is}
	}
	return &OwnDevice{id: id}, nil
}

// DeleteDevice deletes a device, if it is still there.
func (c *Client) DeleteDevice(ctx context.Context, d OwnDevice) error {
	if d.id == "" {
		return &NotOwnError{}
	}
	return ignoreNotFound(c.call(ctx, "deleting device "+d.id, scopeDevices, func(ctx context.Context, api *tailscale.Client) error {
		return api.Devices().Delete(ctx, d.id)
	}))
}

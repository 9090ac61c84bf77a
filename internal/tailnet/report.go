// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// Fields of a device's state Secret that are for others to read: the operator, which
// looks after the devices of replicas, and people. All but the last are those of
// Tailscale's own proxies.
const (
	// FieldDeviceID is the stable ID of the device.
	FieldDeviceID = "device_id"
	// FieldDeviceFQDN is the device's FQDN without the trailing dot.
	FieldDeviceFQDN = "device_fqdn"
	// FieldDeviceIPs are the device's tailnet addresses, a JSON array.
	FieldDeviceIPs = "device_ips"
	// FieldPodUID is the UID of the pod that wrote the rest.
	FieldPodUID = "pod_uid"
	// FieldReissue asks for another auth key. Its value is the key that the control
	// server refused, or empty when there was none.
	FieldReissue = "reissue_authkey"
	// FieldChecks are the readiness checks that fail, a JSON object of their names and
	// reasons.
	FieldChecks = "checks"
)

// reported are these keys. They come and go, and the operator takes some away.
var reported = map[string]bool{
	FieldDeviceID: true, FieldDeviceFQDN: true, FieldDeviceIPs: true, FieldPodUID: true, FieldReissue: true, FieldChecks: true,
}

const (
	// reportInterval is how often the checks are asked for the report.
	reportInterval = 2 * time.Second
	// restoreInterval is how often the Secret is looked at that holds it.
	restoreInterval = 30 * time.Second
	// restoreTimeout bounds the last look.
	restoreTimeout = 2 * time.Second
)

// Report tells in the node's state Secret how the node is, until ctx is done: which device this is, which pod runs it, and which checks fail.
func (n *Node) Report(ctx context.Context, store *SecretStore, podUID string, failing func(context.Context) map[string]string) error {
	written := map[string][]byte{}
	restored := time.Now()
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		if time.Since(restored) > restoreInterval {
			restored = time.Now()
			if err := store.Restore(ctx); err != nil {
				n.config.Log.WarnContext(ctx, "the device's state", "error", err)
			}
		}
		report, err := n.report(podUID, failing(ctx))
		if err == nil {
			for key, value := range written {
				if bytes.Equal(report[key], value) {
					delete(report, key)
				}
			}
			if len(report) == 0 {
				return
			}
			err = store.write(ctx, report)
		}
		if err != nil {
			n.config.Log.WarnContext(ctx, "reporting to the operator", "error", err)
			return
		}
		for key, value := range report {
			written[key] = value
		}
	}, reportInterval)
	// The next process has what the Secret has.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restoreTimeout)
	defer cancel()
	if err := store.Restore(ctx); err != nil {
		n.config.Log.WarnContext(ctx, "the device's state", "error", err)
	}
	return nil
}

// report returns what there is to tell.
func (n *Node) report(podUID string, failing map[string]string) (map[string][]byte, error) {
	checks, err := json.Marshal(failing)
	if err != nil {
		return nil, fmt.Errorf("encoding the checks: %w", err)
	}
	report := map[string][]byte{FieldPodUID: []byte(podUID), FieldChecks: checks}
	st := n.currentStatus()
	if st.id == "" {
		return report, nil
	}
	ips, err := json.Marshal(st.addrs)
	if err != nil {
		return nil, fmt.Errorf("encoding the device's addresses: %w", err)
	}
	report[FieldDeviceID], report[FieldDeviceFQDN], report[FieldDeviceIPs] = []byte(st.id), []byte(st.name), ips
	return report, nil
}

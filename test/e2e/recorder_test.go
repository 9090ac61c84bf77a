// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"tailscale.com/tailcfg"

	"github.com/tailhelm/tailhelm/test/e2e/framework"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

const (
	// recorderExample is the example with a Recorder, and recorderName the Recorder's name there.
	recorderExample = "recorder"
	recorderName    = "recorder"
)

// TestRecorder installs the example with a Recorder. Alice must be recorded: her sessions
// can be listed and played, also after an upgrade, and she has none without the recorder.
// What is recorded stays when the release goes.
func TestRecorder(t *testing.T) {
	t.Parallel()
	r := suite.NewRelease(t, "recorder", nil)
	r.Files = []string{recorderExample}
	oauth(t, r)
	r.Switches["workloads.withdrawDelaySeconds"] = withdrawDelay
	claim := "recordings-" + recorderName + "-0"
	r.Volume(t, claim)
	r.Upgrade(t)
	waitRecorder(t, "RecorderReady=true")
	checkSelectors(t, r, "")
	use(t, r, permutation{})

	suite.Grant(t, recordedGrant(r))
	alice := callersOf(t, r, permutation{})[0]
	waitRecorded(t, r, alice)
	for _, spdy := range []bool{false, true} {
		checkRecorded(t, r, alice, framework.Options{SPDY: spdy}, fmt.Sprintf("said over SPDY: %t", spdy))
	}
	upgradeRecorder(t, r)
	alice = callersOf(t, r, permutation{})[0]
	checkRecorded(t, r, alice, framework.Options{}, "after the upgrade")
	withoutRecorder(t, r, alice)
	waitRecorded(t, r, alice)
	checkRecorded(t, r, alice, framework.Options{}, "with the recorder again")

	r.Uninstall(t)
	checkGone(t, r, false)
	framework.Wait(t, "the recorder's device to be gone", func(context.Context) bool { return len(recorderDevices()) == 0 })
	if _, err := suite.Kube.CoreV1().PersistentVolumeClaims(r.Namespace).Get(t.Context(), claim, metav1.GetOptions{}); err != nil {
		t.Errorf("the recordings went with the release: %v", err)
	}
}

// upgradeRecorder changes a value that replaces the recorder's pod, and checks that it
// comes back as the same device with the same recordings.
func upgradeRecorder(t *testing.T, r *framework.Release) {
	t.Helper()
	device, before := recorderDevice(t), recordings(t, r)
	const annotation = "upgraded"
	r.Values["workloads.podAnnotations."+annotation] = "yes"
	r.Upgrade(t)
	waitReplaced(t, r, recorderName, annotation)
	waitRecorder(t, "RecorderReady=true")
	if after := recorderDevice(t); after.ID != device.ID {
		t.Errorf("after an upgrade the recorder is the device %s, before it was %s", after.ID, device.ID)
	}
	if after := recordings(t, r); !slices.Equal(after, before) {
		t.Errorf("after an upgrade the recordings are %q, before it they were %q", after, before)
	}
}

// withoutRecorder scales the Recorder to nothing, and back: there are no sessions meanwhile.
func withoutRecorder(t *testing.T, r *framework.Release, c *framework.Caller) {
	t.Helper()
	scaleRecorder(t, 0)
	framework.Wait(t, "the recorder's pod to be gone", func(ctx context.Context) bool {
		_, err := suite.Kube.CoreV1().Pods(r.Namespace).Get(ctx, recorderName+"-0", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if out, err := say(t.Context(), c, framework.Options{}, "unheard"); err == nil || !strings.Contains(out, "no recorder") {
		t.Errorf("a session that nothing records: %v, %s", err, out)
	}
	if _, err := c.Run(t.Context(), framework.Options{}, "get", "pods"); err != nil {
		t.Errorf("what is no session: %v", err)
	}
	scaleRecorder(t, 1)
	waitRecorder(t, "RecorderReady=true")
}

// waitRecorded waits until the proxy knows the recorder.
func waitRecorded(t *testing.T, r *framework.Release, c *framework.Caller) {
	t.Helper()
	before := len(recordings(t, r))
	framework.Wait(t, "a session that is recorded", func(ctx context.Context) bool {
		_, err := say(ctx, c, framework.Options{}, "is this recorded?")
		return err == nil && len(recordings(t, r)) > before
	})
}

// checkRecorded has a session, and fails the test if its recording does not show it.
func checkRecorded(t *testing.T, r *framework.Release, c *framework.Caller, o framework.Options, what string) {
	t.Helper()
	if _, err := say(t.Context(), c, o, what); err != nil {
		t.Error(err)
	}
	framework.Wait(t, "a recording of "+what, func(context.Context) bool {
		names := recordings(t, r)
		return len(names) > 0 && strings.Contains(inRecorder(t, r, "play", "--speed=0", names[len(names)-1]), what)
	})
	if list := inRecorder(t, r, "list"); !strings.Contains(list, framework.Work+"/"+framework.Pod) || !strings.Contains(list, r.Device(t).FQDN) {
		t.Errorf("the recordings are\n%s", list)
	}
}

// recordedGrant has Alice's sessions through the release recorded, or refused.
func recordedGrant(r *framework.Release) tailnet.Grant {
	rule := fmt.Sprintf(`{"recorder": [%q], "enforceRecorder": true}`, framework.RecorderTag)
	return tailnet.Grant{
		Src: []string{framework.Alice}, Dst: []string{"host:" + r.Hostname},
		App: tailcfg.PeerCapMap{tailcfg.PeerCapabilityKubernetes: {tailcfg.RawMessage(rule)}},
	}
}

// say has a container of the pod write something.
func say(ctx context.Context, c *framework.Caller, o framework.Options, what string) (string, error) {
	return c.Run(ctx, o, "exec", "--container=main", framework.Pod, "--", "echo", what)
}

// inRecorder runs the program in the recorder's pod, as the documentation has it.
func inRecorder(t *testing.T, r *framework.Release, args ...string) string {
	t.Helper()
	args = append([]string{"--namespace=" + r.Namespace, "exec", recorderName + "-0", "--", "tailhelm", "recorder"}, args...)
	out, err := suite.Kubectl(t.Context(), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// recordings are the names of Alice's recordings, the oldest first.
func recordings(t *testing.T, r *framework.Release) []string {
	t.Helper()
	var names []string
	for line := range strings.Lines(inRecorder(t, r, "list")) {
		if fields := strings.Fields(line); strings.Contains(line, framework.Alice) {
			names = append(names, fields[len(fields)-1])
		}
	}
	return names
}

// waitRecorder waits until the Recorder has a condition.
func waitRecorder(t *testing.T, condition string) {
	t.Helper()
	waitCondition(t, "recorder/"+recorderName, condition)
}

func scaleRecorder(t *testing.T, replicas int) {
	t.Helper()
	patch := fmt.Sprintf(`--patch={"spec":{"replicas":%d}}`, replicas)
	if out, err := suite.Kubectl(t.Context(), "patch", "recorder", recorderName, "--type=merge", patch).CombinedOutput(); err != nil {
		t.Fatalf("kubectl patch: %v\n%s", err, out)
	}
}

func recorderDevices() []tailnet.DeviceStatus {
	return slices.DeleteFunc(suite.Tailnet.Devices(), func(d tailnet.DeviceStatus) bool {
		return !slices.Contains(d.Identity.Tags, framework.RecorderTag)
	})
}

// recorderDevice is the one device of recorders.
func recorderDevice(t *testing.T) tailnet.DeviceStatus {
	t.Helper()
	devices := recorderDevices()
	if len(devices) != 1 || !devices[0].Online {
		t.Fatalf("devices of recorders: %+v, want one that is online", devices)
	}
	return devices[0]
}

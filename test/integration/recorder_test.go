// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/test/kubernetes"
)

// TestRecorderInCluster: what the documentation says of a recorder in a cluster, with the chart, the
// operator and the recorder as they are: from kubectl apply to a session that is recorded
// and played, to nothing left. It must be recorded, so without a recorder there is none.
func TestRecorderInCluster(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.read("docs/recording.md")
	const name, tag = "recorder", "tag:k8s-recorder"
	s.setPolicy("group:eng", s.block("json"))
	s.kubectl(s.block("yaml"), "apply", "--dry-run=server", "--filename=-")
	// Nothing here provides volumes.
	manifest, _, ok := strings.Cut(s.block("yaml"), "  storage:")
	if !ok {
		t.Fatal("the documentation's Recorder has no storage")
	}
	s.kubectl(manifest, "apply", "--filename=-")
	s.kubectl("", "wait", "recorder", name, "--for=condition=RecorderReady=true", "--timeout="+patience.String())
	r := &v1alpha1.Recorder{}
	noError(t, json.Unmarshal([]byte(s.kubectl("", "get", "recorder", name, "--output=json")), r))
	if d := r.Status.Devices; len(d) != 1 || d[0].Hostname != name+"-0" || len(d[0].TailnetIPs) == 0 {
		t.Fatalf("devices %+v", d)
	}
	device, err := s.admin.Devices().List(t.Context())
	noError(t, err)
	for _, d := range device {
		if d.Hostname == name+"-0" && strings.Join(d.Tags, ",") != tag {
			t.Errorf("the recorder has the tags %q", d.Tags)
		}
	}

	s.kubectl("", "create", "clusterrolebinding", "readers", "--clusterrole=cluster-admin", "--group=tailnet-readers")
	c := s.caller()
	c.waitWhoami(s.login, "tailnet-readers")
	kubelet, err := s.cluster.StartKubelet(t.Context(), kubernetes.KubeletOptions{Name: "worker"})
	noError(t, err)
	s.kubectl(fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: shell, namespace: default}\nspec: {nodeName: %s, containers: [{name: main, image: none, stdin: true, command: [cat]}]}", kubelet.Name()), "apply", "--filename=-")
	s.kubectl("", "wait", "pod", "shell", "--namespace=default", "--for=condition=Ready", "--timeout="+patience.String())
	if out := c.mustKubectl("exec", "--namespace=default", "shell", "--", "sh", "-c", "echo said in the session"); out != "said in the session\n" {
		t.Errorf("the session says %q", out)
	}

	// What kubectl exec shows of it.
	dir := filepath.Join(s.dir, s.podUID(name+"-0"), "volumes", "recordings")
	run := func(args ...string) string {
		cmd := exec.CommandContext(within(t, patience), shared.program, append([]string{"recorder"}, args...)...)
		cmd.Env = append(cmd.Environ(), "RECORDINGS_DIR="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("tailhelm recorder %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	var list string
	eventually(t, "a whole recording", func() bool {
		list = run("list")
		return strings.Contains(list, "  true  ")
	})
	lines := strings.Split(strings.TrimSpace(list), "\n")
	if len(lines) != 2 || !strings.Contains(lines[1], s.login) || !strings.Contains(lines[1], "default/shell") {
		t.Fatalf("the recordings are\n%s", list)
	}
	fields := strings.Fields(lines[1])
	if out := run("play", "--speed=0", fields[len(fields)-1]); !strings.Contains(out, "said in the session") {
		t.Errorf("the recording shows %q", out)
	}

	// Without the recorder there is no session, and nothing of it is left.
	s.kubectl("", "delete", "recorder", name, "--timeout="+patience.String())
	s.checkNoObjects(name)
	s.waitNames([]string{operatorName, c.Name()}, nil)
	if out, problem, err := c.kubectl("exec", "--namespace=default", "shell", "--", "sh", "-c", "echo said unheard"); err == nil || strings.Contains(out, "unheard") {
		t.Errorf("a session that must be recorded: %v, %s%s", err, out, problem)
	}
	s.kubectl("", "delete", "pod", "shell", "--namespace=default", "--grace-period=1")
}

// podUID returns the UID of a Pod of the release's namespace.
func (s *stage) podUID(name string) string {
	s.t.Helper()
	return s.kubectl("", "get", "pod", name, "--namespace="+releaseSpace, "--output=jsonpath={.metadata.uid}")
}

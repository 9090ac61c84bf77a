// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"

	"github.com/tailhelm/tailhelm/internal/doctor"
)

// noTailscaled answers nothing, with bytes that a terminal obeys.
type noTailscaled struct{}

func (noTailscaled) Status(context.Context) (*ipnstate.Status, error) {
	return nil, errors.New("no socket\x1b[2J\nok    connect")
}

func (noTailscaled) GetPrefs(context.Context) (*ipn.Prefs, error) { return nil, errors.New("unused") }

func runDoctor(args ...string) (stdout string, err error) {
	c := newDoctorWith(noTailscaled{})
	var out bytes.Buffer
	c.SetArgs(args)
	c.SetOut(&out)
	c.SilenceErrors, c.SilenceUsage = true, true
	err = c.ExecuteContext(context.Background())
	return out.String(), err
}

func TestDoctorSettings(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"give the name of one proxy":         {},
		`NAME="a b": give the proxy's name`:  {"a b"},
		`--output="yaml": choose text or js`: {"a", "--output=yaml"},
		`--timeout="0s": give a duration`:    {"a", "--timeout=0s"},
	} {
		_, err := runDoctor(args...)
		checkSetting(t, err, want)
	}
}

// TestDoctorText: a line for each step, whatever others have to say.
func TestDoctorText(t *testing.T) {
	t.Parallel()
	file := kubeconfigFile(t, "clusters: [{name: c, cluster: {server: 'https://cluster.tail1234.ts.net'}}]\ncontexts: [{name: x, context: {cluster: c}}]\n")
	stdout, err := runDoctor("cluster.tail1234.ts.net", "--kubeconfig="+file)
	if err == nil || err.Error() != `the step "tailscaled" failed` {
		t.Errorf("error %v", err)
	}
	lines := strings.Split(stdout, "\n")
	for i, want := range []string{
		"FAIL  tailscaled  tailscaled does not answer: no socket [2J ok    connect. Start Tailscale", "-     name        not tried", "-     connect     not tried",
		"-     tls         not tried", "-     version     not tried", "-     identity    not tried",
		`ok    kubeconfig  the context "x" leads to it, and is not the current one. Use it: kubectl config use-context x.`, "",
	} {
		if len(lines) != 8 || !strings.HasPrefix(lines[i], want) {
			t.Fatalf("line %d is not %q:\n%s", i, want, stdout)
		}
	}
}

// TestDoctorJSON: programs read these names.
func TestDoctorJSON(t *testing.T) {
	t.Parallel()
	stdout, err := runDoctor("http://cluster.tail1234.ts.net", "--output=json", "--kubeconfig="+kubeconfigFile(t, ""))
	if err == nil {
		t.Error("no error")
	}
	var got struct {
		Server *string
		OK     *bool `json:"ok"`
		Steps  []map[string]string
	}
	decoder := json.NewDecoder(strings.NewReader(stdout))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&got); err != nil || got.Server == nil || got.OK == nil || len(got.Steps) != 7 {
		t.Fatalf("%v\n%s", err, stdout)
	}
	if *got.Server != "http://cluster.tail1234.ts.net" || *got.OK {
		t.Errorf("server %s, ok %t", *got.Server, *got.OK)
	}
	for i, want := range []struct{ name, status string }{{doctor.StepTailscaled, "fail"}, {doctor.StepName, "not-tried"}} {
		s := got.Steps[i]
		if len(s) != 4 || s["name"] != want.name || s["status"] != want.status {
			t.Errorf("step %v, want %v", s, want)
		}
		if _, ok := s["advice"]; !ok {
			t.Errorf("no advice in %v", s)
		}
	}
}

// TestDoctorNoKubeconfig: a file that was named and is not there is a mistake.
func TestDoctorNoKubeconfig(t *testing.T) {
	t.Parallel()
	stdout, err := runDoctor("cluster.tail1234.ts.net", "--kubeconfig=/nowhere/config")
	if err == nil || !strings.Contains(stdout, "FAIL  kubeconfig  the kubeconfig cannot be read: ") {
		t.Errorf("%v\n%s", err, stdout)
	}
}

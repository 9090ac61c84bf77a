// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/tailhelm/tailhelm/test/kubernetes"
	"github.com/tailhelm/tailhelm/test/tailhelm"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// errUnexpected means that something ran, but not as it should.
var errUnexpected = errors.New("an answer is not the expected one")

// sceneTimeout bounds one kubectl.
const sceneTimeout = time.Minute

// actor is a device of the tailnet, with a kubeconfig of its own.
type actor struct {
	identity   tailnet.Identity
	about      string
	kubeconfig string
}

// order is the order in which actors are shown.
var order = []string{"alice-laptop", "bob-laptop", "ci-runner", "carol-laptop"}

// cast adds the devices to the tailnet, and grants bob a group.
func (s *stage) cast(ctx context.Context) error {
	s.actors = map[string]*actor{
		"alice-laptop": {identity: tailnet.Identity{Login: "alice@example.com"}, about: "a user with a binding of her own to edit"},
		"bob-laptop":   {identity: tailnet.Identity{Login: "bob@example.com"}, about: "a user granted the group tailnet-readers"},
		"ci-runner":    {identity: tailnet.Identity{Tags: []string{"tag:k8s-readers"}}, about: "a device tagged tag:k8s-readers"},
		"carol-laptop": {identity: tailnet.Identity{Login: "carol@example.com"}, about: "a user with no grant and no binding"},
	}
	if err := s.tailnet.SetGrants(tailnet.KubernetesGrant("bob@example.com", "tag:k8s-operator", "tailnet-readers")); err != nil {
		return err
	}
	step("devices of the tailnet")
	for _, name := range order {
		a := s.actors[name]
		device, err := s.tailnet.Device(ctx, name, a.identity)
		if err != nil {
			return err
		}
		a.kubeconfig = filepath.Join(s.dir, name+".kubeconfig")
		if err := tailhelm.WriteKubeconfig(a.kubeconfig, hostname+"."+s.tailnet.Domain(), s.tailnet.RootsPEM(), device.ProxyURL()); err != nil {
			return err
		}
		fmt.Printf("    %-13s %s\n", name, a.about)
	}
	var err error
	s.kubectl, err = kubernetes.KubectlPath(ctx)
	return err
}

// scene is one kubectl and what should come of it.
type scene struct {
	actor string
	args  []string
	fails bool // kubectl exits with another status than 0
	says  []string
}

var scenes = []scene{
	{actor: "alice-laptop", args: []string{"auth", "whoami"}, says: []string{"alice@example.com"}},
	{actor: "alice-laptop", args: []string{"create", "configmap", "greeting", "--from-literal=text=hello"}, says: []string{"configmap/greeting created"}},
	{actor: "alice-laptop", args: []string{"get", "configmap", "greeting", "-o", "jsonpath={.data.text}"}, says: []string{"hello"}},
	{actor: "bob-laptop", args: []string{"auth", "whoami"}, says: []string{"bob@example.com", "tailnet-readers"}},
	{actor: "bob-laptop", args: []string{"get", "configmaps"}, says: []string{"greeting"}},
	{actor: "bob-laptop", args: []string{"delete", "configmap", "greeting"}, fails: true, says: []string{"Forbidden", `User "bob@example.com" cannot delete resource "configmaps"`}},
	{actor: "bob-laptop", args: []string{"get", "configmaps", "--as=system:admin"}, fails: true, says: []string{"This proxy impersonates you, "}},
	{actor: "ci-runner", args: []string{"auth", "whoami"}, says: []string{"ci-runner.", "tag:k8s-readers"}},
	{actor: "ci-runner", args: []string{"get", "configmap", "greeting", "-o", "jsonpath={.data.text}"}, says: []string{"hello"}},
	{actor: "ci-runner", args: []string{"create", "configmap", "mine"}, fails: true, says: []string{"forbidden", `User "ci-runner.tail1234.ts.net" cannot create resource "configmaps"`}},
	{actor: "carol-laptop", args: []string{"auth", "whoami"}, says: []string{"carol@example.com"}},
	{actor: "carol-laptop", args: []string{"get", "configmaps"}, fails: true, says: []string{"Forbidden", `User "carol@example.com" cannot list resource "configmaps"`}},
	{actor: "alice-laptop", args: []string{"delete", "configmap", "greeting"}, says: []string{"deleted"}},
}

// play runs every scene, with a watch of bob's open meanwhile, and errs if any
// answer is another than expected.
func (s *stage) play(ctx context.Context) error {
	step("kubectl, through the proxy at https://%s.%s", hostname, s.tailnet.Domain())
	watch, err := s.openWatch(ctx, "bob-laptop")
	if err != nil {
		return err
	}
	defer watch.cancel()
	bad := 0
	for _, scene := range scenes {
		ok, err := s.act(ctx, scene)
		if err != nil {
			return err
		}
		if !ok {
			bad++
		}
	}
	if !watch.ends(ctx) {
		bad++
	}
	if bad > 0 {
		return fmt.Errorf("%w: %d of %d", errUnexpected, bad, len(scenes)+1)
	}
	fmt.Printf("\nAll %d answers are the expected ones.\n", len(scenes)+1)
	return nil
}

// as returns a kubectl of an actor.
func (s *stage) as(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.kubectl, args...) //nolint:gosec // the pinned kubectl
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.actors[name].kubeconfig, "HOME="+s.dir)
	return cmd
}

// act runs a scene, prints it, and reports whether it went as expected.
func (s *stage) act(ctx context.Context, scene scene) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, sceneTimeout)
	defer cancel()
	out, err := s.as(ctx, scene.actor, scene.args...).CombinedOutput()
	code, err := exitCode(err)
	if err != nil {
		return false, err
	}
	ok := (code != 0) == scene.fails && containsAll(string(out), scene.says)
	show(scene.actor, scene.args, string(out), ok)
	if !ok {
		fmt.Printf("      exit status %d, expected %s and %q\n", code, map[bool]string{true: "a failure", false: "0"}[scene.fails], scene.says)
	}
	return ok, nil
}

// show prints what an actor did and what was answered.
func show(actor string, args []string, answer string, ok bool) {
	mark := "ok"
	if !ok {
		mark = "UNEXPECTED"
	}
	fmt.Printf("\n    %s$ kubectl %s    [%s]\n", actor, strings.Join(args, " "), mark)
	for line := range strings.Lines(strings.TrimSpace(answer)) {
		fmt.Printf("      %s\n", strings.TrimRight(line, "\n"))
	}
}

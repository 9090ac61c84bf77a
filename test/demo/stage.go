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

	"golang.org/x/sync/errgroup"

	"github.com/tailhelm/tailhelm/test/kubernetes"
	"github.com/tailhelm/tailhelm/test/tailhelm"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

const (
	namespace = "tailscale"
	release   = "tailscale-operator"
	hostname  = "tailscale-operator"
	// readyTimeout bounds the operator's way to /readyz: a second, on a machine
	// that is not busy.
	readyTimeout = 2 * time.Minute
	stopTimeout  = 30 * time.Second
)

// stage is everything that the demo runs.
type stage struct {
	dir      string
	program  string // tailhelm
	kubectl  string
	cluster  *kubernetes.Cluster
	tailnet  *tailnet.Tailnet
	operator *tailhelm.Process
	actors   map[string]*actor
}

// step prints what comes next.
func step(format string, args ...any) { fmt.Printf("==> "+format+"\n", args...) }

// set builds and starts everything.
func (s *stage) set(ctx context.Context) error {
	var err error
	if s.dir, err = os.MkdirTemp("", "tailhelm-demo-"); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	if err := s.install(ctx); err != nil {
		return err
	}
	if err := s.bind(ctx); err != nil {
		return err
	}
	if err := s.operate(ctx); err != nil {
		return err
	}
	return s.cast(ctx)
}

// start starts the cluster and the tailnet, and builds tailhelm.
func (s *stage) start(ctx context.Context) error {
	step("building and starting a Kubernetes control plane, a tailnet and tailhelm (the first time takes minutes)")
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		// The controller manager fills in the ClusterRoles view and edit.
		s.cluster, err = kubernetes.Start(ctx, kubernetes.Options{ControllerManager: true})
		return err
	})
	group.Go(func() (err error) {
		s.tailnet, err = tailnet.Start(ctx, tailnet.Options{})
		return err
	})
	group.Go(func() (err error) {
		s.program, err = tailhelm.Build(ctx, s.dir, false)
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	version, err := s.cluster.Client().Discovery().ServerVersion()
	if err != nil {
		return err
	}
	fmt.Printf("    kube-apiserver %s at %s\n    tailnet %s, control server %s\n", version.GitVersion, s.cluster.URL(), s.tailnet.Domain(), s.tailnet.URL())
	return nil
}

// install installs the chart as a user would.
func (s *stage) install(ctx context.Context) error {
	root, err := tailhelm.Root(ctx)
	if err != nil {
		return err
	}
	id, secret := s.tailnet.OAuthClient("tag:k8s-operator")
	step("helm upgrade --install %s charts/tailscale-operator --namespace=%s --create-namespace \\\n      --set-string oauth.clientId=... --set-string oauth.clientSecret=... --set-string apiServerProxyConfig.mode=\"true\" --set loginServer=...", release, namespace)
	out, err := s.cluster.Helm(ctx, "upgrade", "--install", release, filepath.Join(root, "charts", "tailscale-operator"),
		"--namespace="+namespace, "--create-namespace",
		"--set-string", "oauth.clientId="+id,
		"--set-string", "oauth.clientSecret="+secret,
		"--set-string", "apiServerProxyConfig.mode=true",
		"--set-string", "operatorConfig.hostname="+hostname,
		"--set", "loginServer="+s.tailnet.URL(),
		"--set", "controllers.enabled=false", // the proxy in the pod alone
	).CombinedOutput()
	if err != nil {
		return fmt.Errorf("helm: %w\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "STATUS:") || strings.HasPrefix(line, "NAMESPACE:") {
			fmt.Print("    ", line)
		}
	}
	return nil
}

// bind binds roles to a granted group, a tag and a user.
func (s *stage) bind(ctx context.Context) error {
	for _, args := range [][]string{
		{"create", "clusterrolebinding", "tailnet-readers-view", "--group=tailnet-readers", "--clusterrole=view"},
		{"create", "clusterrolebinding", "tag-k8s-readers-view", "--group=tag:k8s-readers", "--clusterrole=view"},
		{"create", "clusterrolebinding", "alice-edit", "--user=alice@example.com", "--clusterrole=edit"},
	} {
		step("kubectl %s", strings.Join(args, " "))
		if out, err := s.cluster.Kubectl(ctx, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("kubectl: %w\n%s", err, out)
		}
	}
	return nil
}

// operate runs the operator from its Deployment's pod spec and waits until it is
// ready.
func (s *stage) operate(ctx context.Context) error {
	step("running the operator as a process, from the pod spec of Deployment operator (there is no kubelet here)")
	command, err := tailhelm.PodOf(ctx, s.cluster.Config(), namespace, "operator", s.program, filepath.Join(s.dir, "pod"))
	if err != nil {
		return err
	}
	command.Env = append(command.Env, s.tailnet.Environ()...)
	if s.operator, err = tailhelm.Start(context.WithoutCancel(ctx), command); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	ready, err := s.operator.WaitReadyz(ctx, func(code int, _ string) bool { return code == 200 })
	if err != nil {
		return err
	}
	fmt.Print("    /readyz?verbose: ", strings.ReplaceAll(strings.TrimSpace(ready), "\n", "  "), "\n")
	return nil
}

// close stops everything, last started first.
func (s *stage) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var errs []error
	if s.operator != nil {
		errs = append(errs, s.operator.Stop(ctx))
	}
	if s.tailnet != nil {
		errs = append(errs, s.tailnet.Close())
	}
	if s.cluster != nil {
		errs = append(errs, s.cluster.Close())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// hold keeps everything up until ctx is done.
func (s *stage) hold(ctx context.Context) {
	fmt.Printf("\n%s\nEverything stays up until you press Ctrl-C. In another terminal:\n\n", strings.Repeat("-", 78))
	fmt.Printf("  alias kubectl=%s\n", s.kubectl)
	for _, name := range order {
		fmt.Printf("  KUBECONFIG=%s kubectl auth whoami    # as %s\n", s.actors[name].kubeconfig, name)
	}
	fmt.Printf("  KUBECONFIG=%s kubectl get pods -A    # as cluster-admin, not through the proxy\n", s.cluster.Kubeconfig())
	select {
	case <-ctx.Done():
		fmt.Println("\nstopping everything")
	case <-s.operator.Done():
		fmt.Println("the operator has ended:")
		fmt.Println(strings.Join(s.operator.Log(), "\n"))
	}
}

// exitCode returns the exit status of a finished command, or an error when it
// could not run.
func exitCode(err error) (int, error) {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return exit.ExitCode(), nil
	}
	return 0, err
}

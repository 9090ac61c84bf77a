// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	testkubernetes "github.com/tailhelm/tailhelm/test/kubernetes"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

// Who the clients are.
const (
	// Alice has a grant for the group Admins.
	Alice = "alice@example.com"
	// Bob has none.
	Bob = "bob@example.com"
	// Machine is the tag of a device without grants: its group is its tag.
	Machine = "tag:ci"
	// Admins is the group that Alice is granted.
	Admins = "platform-admins"
)

// OperatorTag is the tag of the operator's device by default.
const OperatorTag = "tag:k8s-operator"

// RecorderTag is the tag of recorders in the examples.
const RecorderTag = "tag:k8s-recorder"

// groupTags are the tags of ProxyGroups' replicas.
var groupTags = []string{"tag:k8s", "tag:k8s-tools"}

// TagOwners are the owners of tags as the documentation has them: the operator's OAuth
// client gives replicas and recorders theirs.
func TagOwners() map[string][]string {
	owners := map[string][]string{RecorderTag: {OperatorTag}}
	for _, tag := range groupTags {
		owners[tag] = []string{OperatorTag}
	}
	return owners
}

// Suite is what all tests share.
type Suite struct {
	// Tailnet is the test tailnet.
	Tailnet *tailnet.Tailnet
	// Kube is the administrator's client of the cluster, Config its configuration.
	Kube   kubernetes.Interface
	Config *rest.Config
	// Kubeconfig is the path of the administrator's kubeconfig.
	Kubeconfig string
	// Alice, Bob and Machine are the clients.
	Alice, Bob, Machine *Client

	dir     string // scratch
	gateway string // of the cluster's network
	image   loadedImage
	logs    *logFile
	grants  grants
	payload payload
}

// Run runs the tests of a package with a suite, which *s points to from then on, and
// returns the exit code.
func Run(m *testing.M, s **Suite) int {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// An interrupt ends the tests at once, but not what they have to clean up.
	suite, err := start(ctx)
	code := 1
	if err == nil {
		*s = suite
		done := make(chan struct{})
		go func() {
			select {
			case <-ctx.Done():
				fmt.Fprintln(os.Stderr, "interrupted")
				_ = suite.close()
				os.Exit(1)
			case <-done:
			}
		}()
		code = m.Run()
		close(done)
	}
	if err = errors.Join(err, suite.close()); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	return code
}

// step says what the suite does, with the time since its start.
func step(begin time.Time, format string, args ...any) {
	fmt.Printf("==> %3.0f s: %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
}

// start starts a suite. It returns one, to close, even when it fails.
func start(ctx context.Context) (*Suite, error) {
	begin := time.Now()
	s := &Suite{}
	if err := dockerRuns(ctx); err != nil {
		return s, err
	}
	var err error
	if s.dir, err = os.MkdirTemp("", "tailhelm-e2e-"); err != nil {
		return s, err
	}
	s.Kubeconfig = filepath.Join(s.dir, "admin.kubeconfig")
	if err := os.MkdirAll(*artifacts, 0o750); err != nil {
		return s, err
	}
	if s.logs, err = newLogFile(filepath.Join(*artifacts, "tailnet.log")); err != nil {
		return s, err
	}
	step(begin, "building clients")
	programs, err := buildPrograms(ctx)
	if err != nil {
		return s, err
	}
	step(begin, "creating the cluster %s", *clusterName)
	if err := s.startCluster(); err != nil {
		return s, err
	}
	step(begin, "loading images")
	if err := s.loadImages(ctx); err != nil {
		return s, err
	}
	step(begin, "starting the tailnet and its clients")
	if err := s.startTailnet(ctx); err != nil {
		return s, err
	}
	if s.payload, err = newPayload(filepath.Join(s.dir, "payload")); err != nil {
		return s, err
	}
	if err := s.startClients(ctx, programs); err != nil {
		return s, err
	}
	if err := s.prepareCluster(ctx); err != nil {
		return s, err
	}
	step(begin, "ready")
	return s, nil
}

func (s *Suite) connect() error {
	var err error
	if s.Config, err = clientcmd.BuildConfigFromFlags("", s.Kubeconfig); err != nil {
		return err
	}
	s.Config.QPS, s.Config.Burst = 100, 200
	s.Kube, err = kubernetes.NewForConfig(s.Config)
	return err
}

// startTailnet starts the tailnet where pods reach it.
func (s *Suite) startTailnet(ctx context.Context) error {
	var err error
	if s.Tailnet, err = tailnet.Start(ctx, tailnet.Options{ListenHost: s.gateway, Logf: s.logs.printf}); err != nil {
		return err
	}
	if err := s.Tailnet.SetTagOwners(TagOwners()); err != nil {
		return err
	}
	return s.grants.change(s.Tailnet, func(all []*tailnet.Grant) []*tailnet.Grant {
		for _, tag := range []string{OperatorTag, "tag:k8s"} {
			all = append(all, new(tailnet.KubernetesGrant(Alice, tag, Admins)))
		}
		return all
	})
}

// startClients starts the three clients at the same time.
func (s *Suite) startClients(ctx context.Context, p programs) error {
	clients := []struct {
		to *(*Client)
		id tailnet.Identity
		as string
	}{
		{&s.Alice, tailnet.Identity{Login: Alice}, "alice"},
		{&s.Bob, tailnet.Identity{Login: Bob}, "bob"},
		{&s.Machine, tailnet.Identity{Tags: []string{Machine}}, "machine"},
	}
	errs := make([]error, len(clients))
	var all sync.WaitGroup
	for i, c := range clients {
		all.Go(func() { *c.to, errs[i] = s.startClient(ctx, p, c.as, c.id) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// close ends everything but a cluster that is to be kept.
func (s *Suite) close() error {
	var errs []error
	for _, c := range []*Client{s.Alice, s.Bob, s.Machine} {
		if c != nil {
			errs = append(errs, c.close())
		}
	}
	if s.Tailnet != nil {
		errs = append(errs, s.Tailnet.Close())
	}
	if s.Config != nil || s.gateway != "" {
		errs = append(errs, s.stopCluster())
	}
	if s.logs != nil {
		errs = append(errs, s.logs.close())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// programs are paths of what clients run.
type programs struct{ tailscale, tailscaled, kubectl string }

func buildPrograms(ctx context.Context) (programs, error) {
	var p programs
	var err error
	if p.kubectl, err = testkubernetes.KubectlPath(ctx); err != nil {
		return p, err
	}
	helm, err := testkubernetes.HelmPath(ctx)
	if err != nil {
		return p, err
	}
	// terratest finds helm there.
	if err := os.Setenv("PATH", filepath.Dir(helm)+string(os.PathListSeparator)+os.Getenv("PATH")); err != nil {
		return p, err
	}
	if p.tailscale, err = buildClient(ctx, "tailscale"); err != nil {
		return p, err
	}
	p.tailscaled, err = buildClient(ctx, "tailscaled")
	return p, err
}

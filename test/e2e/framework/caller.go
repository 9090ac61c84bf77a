// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// Power is what RBAC lets somebody do in the namespace Work.
type Power int

// Powers, each with all of the one before.
const (
	// None may find out who it is.
	None Power = iota
	// View may get, list and watch, and read logs.
	View
	// Operate may do everything.
	Operate
)

// Caller is a client that uses a release.
type Caller struct {
	*Client
	// Kubeconfig is the path of the kubeconfig for the release's device.
	Kubeconfig string
	// User and Groups are who Kubernetes takes it for.
	User   string
	Groups []string
	Power  Power
}

// Callers configures the three clients for a device that impersonates them. flags are
// for "tailscale configure kubeconfig".
func (s *Suite) Callers(ctx context.Context, device string, flags ...string) ([]*Caller, error) {
	callers := []*Caller{
		{Client: s.Alice, User: Alice, Groups: []string{Admins}, Power: Operate},
		{Client: s.Bob, User: Bob, Power: None},
		{Client: s.Machine, User: "machine." + s.Tailnet.Domain(), Groups: []string{Machine}, Power: View},
	}
	return callers, s.configure(ctx, callers, device, flags...)
}

// TokenCallers configures the three clients for a device that impersonates nobody: they
// bring tokens of ServiceAccounts.
func (s *Suite) TokenCallers(ctx context.Context, device string, flags ...string) ([]*Caller, error) {
	callers := []*Caller{
		{Client: s.Alice, User: OperateAccount, Power: Operate},
		{Client: s.Bob, User: NobodyAccount, Power: None},
		{Client: s.Machine, User: ViewAccount, Power: View},
	}
	if err := s.configure(ctx, callers, device, flags...); err != nil {
		return nil, err
	}
	for _, c := range callers {
		token, err := s.Token(ctx, Work, c.User)
		if err != nil {
			return nil, err
		}
		if err := setToken(c.Kubeconfig, token); err != nil {
			return nil, err
		}
		c.User = "system:serviceaccount:" + Work + ":" + c.User
		c.Groups = []string{"system:serviceaccounts", "system:serviceaccounts:" + Work}
	}
	return callers, nil
}

func (s *Suite) configure(ctx context.Context, callers []*Caller, device string, flags ...string) error {
	for _, c := range callers {
		var err error
		if c.Kubeconfig, err = c.ConfigureKubeconfig(ctx, device, flags...); err != nil {
			return err
		}
	}
	return nil
}

// setToken replaces the token that "tailscale configure kubeconfig" writes, which is good
// for nothing.
func setToken(kubeconfig, token string) error {
	config, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		return err
	}
	for _, user := range config.AuthInfos {
		user.Token = token
	}
	return clientcmd.WriteToFile(*config, kubeconfig)
}

// Trust has the callers' kubeconfigs trust another authority than the tailnet's.
func Trust(callers []*Caller, authority []byte) error {
	for _, c := range callers {
		config, err := clientcmd.LoadFromFile(c.Kubeconfig)
		if err != nil {
			return err
		}
		for _, cluster := range config.Clusters {
			cluster.CertificateAuthorityData = authority
		}
		if err := clientcmd.WriteToFile(*config, c.Kubeconfig); err != nil {
			return err
		}
	}
	return nil
}

// WaitReachable waits until the caller gets any answer from the device. A client whose
// connection to a device was in use when that restarted finds out some seconds later, and
// its SOCKS5 server reports an error for as long.
func (c *Caller) WaitReachable(t *testing.T) {
	t.Helper()
	var last string
	Wait(t, c.Name+" to reach the device", func(ctx context.Context) bool {
		last, _ = c.Run(ctx, Options{Timeout: 20 * time.Second}, "get", "--raw=/version")
		return !strings.Contains(last, "SOCKS server failure") && !strings.Contains(last, "network unreachable")
	})
}

// Run runs kubectl and returns what it wrote, both streams in one.
func (c *Caller) Run(ctx context.Context, o Options, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(o.Timeout, *patience))
	defer cancel()
	cmd := c.command(ctx, o, args...)
	if o.Stdin != "" {
		cmd.Stdin = strings.NewReader(o.Stdin)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: kubectl %s: %w\n%s", c.Name, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// Options of a call of kubectl.
type Options struct {
	// SPDY has streams use SPDY in place of WebSocket.
	SPDY bool
	// Stdin is what kubectl reads.
	Stdin string
	// Timeout bounds the call, if it is not as long as any other wait.
	Timeout time.Duration
}

func (c *Caller) command(ctx context.Context, o Options, args ...string) *exec.Cmd {
	cmd := c.Kubectl(ctx, c.Kubeconfig, append([]string{"--namespace=" + Work}, args...)...)
	webSockets := fmt.Sprint(!o.SPDY)
	cmd.Env = append(cmd.Env, "KUBECTL_REMOTE_COMMAND_WEBSOCKETS="+webSockets, "KUBECTL_PORT_FORWARD_WEBSOCKETS="+webSockets)
	return cmd
}

// Follow runs kubectl, which does not end by itself, until done is true for a line that it
// writes. Its standard input stays open behind o.Stdin. When kubectl ends before that,
// Follow returns an error with what it wrote.
func (c *Caller) Follow(ctx context.Context, o Options, done func(line string) bool, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, *patience)
	defer cancel()
	cmd := c.command(ctx, o, args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		_ = w.Close() // of a pipe: never fails
		ended <- err
	}()
	if _, err := io.WriteString(stdin, o.Stdin); err != nil && o.Stdin != "" {
		// kubectl has ended; what it wrote says why.
		defer cancel()
	}
	var seen []string
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if seen = append(seen, lines.Text()); done(lines.Text()) {
			cancel()
			go func() { _, _ = io.Copy(io.Discard, r) }() // so that kubectl's end is not held up
			// Killed, or done by itself: both are fine now.
			if err := <-ended; err != nil && ctx.Err() == nil {
				return err
			}
			return nil
		}
	}
	err = <-ended
	return fmt.Errorf("%s: kubectl %s ended too early: %w\n%s", c.Name, strings.Join(args, " "), err, tail(seen))
}

// tail is the end of what was written.
func tail(lines []string) string {
	const enough = 20
	if len(lines) > enough {
		lines = lines[len(lines)-enough:]
	}
	return strings.Join(lines, "\n")
}

// CheckIdentity fails the test when Kubernetes takes the caller for somebody else, or for
// a member of other groups.
func (c *Caller) CheckIdentity(t *testing.T) {
	t.Helper()
	out, err := c.Run(t.Context(), Options{}, "auth", "whoami", "--output=json")
	if err != nil {
		t.Error(err)
		return
	}
	var review authenticationv1.SelfSubjectReview
	if err := json.Unmarshal([]byte(out), &review); err != nil {
		t.Errorf("%s: kubectl auth whoami wrote %q: %v", c.Name, out, err)
		return
	}
	is := review.Status.UserInfo
	if is.Username != c.User {
		t.Errorf("%s is %q to Kubernetes, want %q", c.Name, is.Username, c.User)
	}
	want := append([]string{"system:authenticated"}, c.Groups...)
	slices.Sort(want)
	slices.Sort(is.Groups)
	if !slices.Equal(is.Groups, want) {
		t.Errorf("%s is in the groups %q, want %q", c.Name, is.Groups, want)
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	_ "embed" // the pinned module of the client programs
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/tailhelm/tailhelm/test/binary"
	"github.com/tailhelm/tailhelm/test/tailnet"
)

var (
	//go:embed modules/tailscale.mod
	tailscaleMod []byte
	//go:embed modules/tailscale.sum
	tailscaleSum []byte
)

// buildClient builds a program of Tailscale's client.
func buildClient(ctx context.Context, name string) (string, error) {
	return binary.Build(ctx, binary.Program{
		Module:   binary.Module{Name: "tailscale", Mod: tailscaleMod, Sum: tailscaleSum},
		Package:  "tailscale.com/cmd/" + name,
		LDFlags:  "-s -w",
		Duration: "about 4 minutes on 2 cores",
	})
}

// Client is a device of the tailnet with the programs that people use there.
type Client struct {
	// Name is the device's hostname.
	Name string

	programs programs
	payload  payload
	dir      string
	socks    string // address of the SOCKS5 server
	env      []string
	daemon   *exec.Cmd
	log      *os.File
}

// startClient starts a tailscaled in userspace mode and logs it in.
func (s *Suite) startClient(ctx context.Context, p programs, name string, id tailnet.Identity) (_ *Client, err error) {
	c := &Client{Name: name, programs: p, payload: s.payload, dir: filepath.Join(s.dir, name), env: s.Tailnet.Environ()}
	defer func() {
		if err != nil {
			err = fmt.Errorf("client %s: %w", name, err)
		}
	}()
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return nil, err
	}
	if c.socks, err = freeAddress(ctx); err != nil {
		return nil, err
	}
	if c.log, err = os.Create(filepath.Join(*artifacts, name+"-tailscaled.log")); err != nil { //nolint:gosec // in the folder of artifacts
		return nil, err
	}
	// It lives until close, not as long as ctx.
	c.daemon = exec.Command(p.tailscaled, "--tun=userspace-networking", "--statedir="+c.dir, "--socket="+c.socket(), //nolint:noctx,gosec // as said; built above
		"--socks5-server="+c.socks, "--port=0", "--no-logs-no-support")
	c.daemon.Env = c.environ("")
	c.daemon.Stdout, c.daemon.Stderr = c.log, c.log
	c.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.daemon.Start(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, *patience)
	defer cancel()
	// The first attempts find no socket.
	err = wait.PollUntilContextCancel(ctx, 50*time.Millisecond, true, func(context.Context) (bool, error) {
		_, err := os.Stat(c.socket())
		return err == nil, nil
	})
	if err != nil {
		return c, err
	}
	out, err := c.Tailscale(ctx, "up", "--login-server="+s.Tailnet.URL(), "--auth-key="+s.Tailnet.AuthKey(id), "--hostname="+name).CombinedOutput()
	if err != nil {
		return c, fmt.Errorf("tailscale up: %w\n%s", err, out)
	}
	return c, nil
}

func (c *Client) socket() string { return filepath.Join(c.dir, "socket") }

func (c *Client) close() error {
	err := c.daemon.Process.Kill()
	_ = c.daemon.Wait() // it was killed
	return errors.Join(err, c.log.Close())
}

// environ is the environment of the client's programs: with a home and a kubeconfig of
// their own, and with the tailnet's SOCKS5 server as their way out, which is what
// userspace networking has in place of routes.
func (c *Client) environ(kubeconfig string) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return name == "HOME" || strings.HasPrefix(name, "KUBE") || strings.HasPrefix(name, "XDG_") || strings.HasSuffix(strings.ToUpper(name), "_PROXY")
	})
	env = append(env, c.env...)
	env = append(env, "HOME="+c.dir, "KUBERC=off")
	if kubeconfig != "" {
		env = append(env, "KUBECONFIG="+kubeconfig, "HTTPS_PROXY=socks5://"+c.socks, "HTTP_PROXY=socks5://"+c.socks)
	}
	return env
}

// Tailscale is a command of the tailscale program.
func (c *Client) Tailscale(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.programs.tailscale, append([]string{"--socket=" + c.socket()}, args...)...) //nolint:gosec // built for the tests
	cmd.Env = c.environ("")
	return cmd
}

// Kubectl is a command of the kubectl program. Extra environment variables can be
// appended to the command's.
func (c *Client) Kubectl(ctx context.Context, kubeconfig string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.programs.kubectl, args...) //nolint:gosec // built for the tests
	cmd.Env = c.environ(kubeconfig)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// ConfigureKubeconfig has the real "tailscale configure kubeconfig" write a kubeconfig
// for a device, and returns its path. It waits until the client knows the device.
func (c *Client) ConfigureKubeconfig(ctx context.Context, device string, flags ...string) (string, error) {
	path := filepath.Join(c.dir, device+".kubeconfig")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	var out []byte
	var last error
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, *patience, true, func(ctx context.Context) (bool, error) {
		cmd := c.Tailscale(ctx, append(append([]string{"configure", "kubeconfig"}, flags...), device)...)
		cmd.Env = append(cmd.Env, "KUBECONFIG="+path)
		out, last = cmd.CombinedOutput()
		return last == nil, nil
	})
	if err != nil {
		return "", fmt.Errorf("%s: tailscale configure kubeconfig %s: %w\n%s", c.Name, device, last, out)
	}
	return path, nil
}

// freeAddress finds a port of loopback that nobody listens on.
func freeAddress(ctx context.Context) (string, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return ln.Addr().String(), ln.Close()
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// copyAttempts is how often a copy from a pod may be tried: see copyBack.
const copyAttempts = 5

// operation is something that people do with kubectl.
type operation struct {
	name  string
	power Power // that it takes
	// streams: it is tried over WebSocket and over SPDY.
	streams bool
	run     func(ctx context.Context, c *Caller, o Options) error
}

// operations are all that is tried, in this order.
func operations(id string) []operation {
	return []operation{
		{"get", View, false, output("pod/"+Pod, "get", "pod", Pod, "--output=name")},
		{"list", View, false, output("pod/"+Pod, "get", "pods", "--output=name")},
		{"watch", View, false, watch},
		{"logs -f", View, false, followLogs},
		{"create", Operate, false, output("created", "create", "configmap", id)},
		{"delete", Operate, false, output("deleted", "delete", "configmap", id)},
		{"exec", Operate, true, execute},
		{"attach", Operate, true, attach},
		{"port-forward", Operate, true, portForward},
		{"cp", Operate, true, func(ctx context.Context, c *Caller, o Options) error { return copyBothWays(ctx, c, o, id) }},
		{"debug", Operate, true, func(ctx context.Context, c *Caller, o Options) error { return debug(ctx, c, o, id) }},
	}
}

// Use has every caller try everything, and fails the test when the outcome is not what
// RBAC says. id is a part of the names of what they make.
func Use(t *testing.T, id string, callers []*Caller) {
	t.Helper()
	for _, c := range callers {
		c.CheckIdentity(t)
		for _, op := range operations(id + "-" + c.Name) {
			protocols := []bool{false}
			if op.streams {
				protocols = append(protocols, true)
			}
			for _, spdy := range protocols {
				err := op.run(t.Context(), c, Options{SPDY: spdy})
				name := fmt.Sprintf("%s of %s (SPDY: %t)", op.name, c.Name, spdy)
				switch allowed := c.Power >= op.power; {
				case allowed && err != nil:
					t.Errorf("%s: %v", name, err)
				case !allowed && err == nil:
					t.Errorf("%s is possible; RBAC forbids it", name)
				case !allowed && !strings.Contains(err.Error(), "orbidden"):
					t.Errorf("%s: %v, want that it is forbidden", name, err)
				case !allowed && !strings.Contains(err.Error(), c.User):
					t.Errorf("%s: %v, want that the refusal names %s", name, err, c.User)
				}
			}
		}
	}
}

// output runs kubectl, and wants it to write something.
func output(want string, args ...string) func(context.Context, *Caller, Options) error {
	return func(ctx context.Context, c *Caller, o Options) error {
		out, err := c.Run(ctx, o, args...)
		if err == nil && !strings.Contains(out, want) {
			return fmt.Errorf("kubectl %s wrote %q, want %q", strings.Join(args, " "), out, want)
		}
		return err
	}
}

func execute(ctx context.Context, c *Caller, o Options) error {
	o.Stdin = "over and back\n"
	return output(strings.TrimSpace(o.Stdin), "exec", "--stdin", "--container=main", Pod, "--", "cat")(ctx, c, o)
}

// watch reads the stream of a watch, which begins with what is there.
func watch(ctx context.Context, c *Caller, o Options) error {
	return c.Follow(ctx, o, func(line string) bool {
		return strings.Contains(line, `"ADDED"`) && strings.Contains(line, `"`+Pod+`"`)
	},
		"get", "--raw", "/api/v1/namespaces/"+Work+"/pods?watch=1")
}

func followLogs(ctx context.Context, c *Caller, o Options) error {
	lines := map[string]bool{}
	return c.Follow(ctx, o, func(line string) bool {
		lines[line] = strings.HasPrefix(line, "line ")
		return lines[line] && len(lines) > 3
	}, "logs", "--follow", "--tail=1", "--container=main", Pod)
}

func attach(ctx context.Context, c *Caller, o Options) error {
	o.Stdin = "hello from " + c.Name + "\n"
	return c.Follow(ctx, o, func(line string) bool { return line == "you said "+strings.TrimSpace(o.Stdin) },
		"attach", "--stdin", "--quiet", "--container=main", Pod)
}

var forwarding = regexp.MustCompile(`^Forwarding from (127\.0\.0\.1:[0-9]+)`)

// portForward asks the pod's server through a forwarded port. kubectl says that it forwards
// when the API server has agreed.
func portForward(ctx context.Context, c *Caller, o Options) error {
	var failure error
	err := c.Follow(ctx, o, func(line string) bool {
		m := forwarding.FindStringSubmatch(line)
		if m == nil {
			return false
		}
		failure = fetch(ctx, "http://"+m[1])
		return true
	}, "port-forward", "pod/"+Pod, ":8080")
	return errors.Join(err, failure)
}

// debug adds a container to the pod, and talks to it. Its name is of the protocol, too.
func debug(ctx context.Context, c *Caller, o Options, id string) error {
	o.Stdin = "hello from " + c.Name + "\n"
	if o.SPDY {
		id += "-spdy"
	}
	return c.Follow(ctx, o, func(line string) bool { return line == strings.TrimSpace(o.Stdin) },
		"debug", Pod, "--stdin", "--attach", "--quiet", "--image="+WorkloadImage, "--profile=general", "--container="+id, "--", "cat")
}

func fetch(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err == nil && string(body) != "hello from the pod\n" {
		err = fmt.Errorf("the pod answers %q", body)
	}
	return err
}

// payload is the file that clients copy: nothing compresses it.
type payload struct{ path, checksum string }

func newPayload(path string) (payload, error) {
	f, err := os.Create(path) //nolint:gosec // in the suite's folder
	if err != nil {
		return payload{}, err
	}
	h := sha256.New()
	_, err = io.CopyN(io.MultiWriter(f, h), rand.Reader, *copySize)
	return payload{path: path, checksum: hex.EncodeToString(h.Sum(nil))}, errors.Join(err, f.Close())
}

// copyBothWays copies a file into the pod and back, and compares checksums at each end.
func copyBothWays(ctx context.Context, c *Caller, o Options, id string) error {
	remote, down, want := "/tmp/"+id, filepath.Join(c.dir, id), c.payload.checksum
	defer func() { _ = os.Remove(down) }() // not there, when something failed
	if _, err := c.Run(ctx, o, "cp", "--container=main", c.payload.path, Pod+":"+remote); err != nil {
		return err
	}
	out, err := c.Run(ctx, o, "exec", "--container=main", Pod, "--", "sha256sum", remote)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(out, want) {
		return fmt.Errorf("after cp into the pod: checksum %q, want %s", out, want)
	}
	if err := copyBack(ctx, c, o, remote, down); err != nil {
		return err
	}
	got, err := checksum(down)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("after cp from the pod: checksum %s, want %s", got, want)
	}
	_, err = c.Run(ctx, o, "exec", "--container=main", Pod, "--", "rm", remote)
	return err
}

// copyBack copies a file from the pod. The API server closes a stream when it has sent
// everything. What kubectl still says then, a ping for example, resets the connection, and
// a slow client misses the end: past the proxy, 2 of 8 such copies over SPDY at 25 MB/s, and
// 1 of 6 over WebSocket at 5 MB/s. kubectl says so ("unexpected EOF"), and is asked again.
func copyBack(ctx context.Context, c *Caller, o Options, remote, to string) error {
	for attempt := 1; ; attempt++ {
		_, err := c.Run(ctx, o, "cp", "--container=main", Pod+":"+remote, to)
		if err == nil || attempt == copyAttempts || !strings.Contains(err.Error(), "unexpected EOF") {
			return err
		}
	}
}

func checksum(path string) (string, error) {
	f, err := os.Open(path) //nolint:gosec // in the client's folder
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

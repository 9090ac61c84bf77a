// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

// config is the command line.
type config struct {
	tailnet tailnet.Options
	policy  string
	keys    []tailnet.Identity
	oauth   []tailnet.Identity
	devices []deviceSpec
	json    bool
}

type deviceSpec struct {
	name     string
	identity tailnet.Identity
}

func parse(args []string, stderr io.Writer) (config, error) {
	var c config
	var verbose bool
	f := flag.NewFlagSet("testtailnet", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&c.tailnet.ListenHost, "listen", "127.0.0.1", "`address` of this machine to listen on")
	f.IntVar(&c.tailnet.ListenPort, "port", 0, "`port` of the control server (default: a free one)")
	f.StringVar(&c.tailnet.Domain, "domain", "tail1234.ts.net", "MagicDNS suffix")
	f.BoolVar(&c.tailnet.NoHTTPS, "no-https", false, "start no certificate authority")
	f.DurationVar(&c.tailnet.CertificateValidity, "certificate-validity", 0, "life of certificates (default: 90 days)")
	f.BoolVar(&c.tailnet.RestrictNetwork, "restrict-network", false, "let packets pass only where a grant with ip allows them")
	f.StringVar(&c.policy, "policy", "", "policy `file` with groups, tagOwners, grants and autoApprovers")
	f.Func("user", "`login` to make an auth key for; may be repeated", func(s string) error {
		c.keys = append(c.keys, tailnet.Identity{Login: s})
		return nil
	})
	f.Func("tags", "`tags`, separated by commas, to make an auth key for; may be repeated", func(s string) error {
		c.keys = append(c.keys, tailnet.Identity{Tags: strings.Split(s, ",")})
		return nil
	})
	f.Func("oauth", "`tags`, separated by commas, to make an OAuth client for; may be repeated", func(s string) error {
		c.oauth = append(c.oauth, tailnet.Identity{Tags: strings.Split(s, ",")})
		return nil
	})
	f.Func("device", "`name=login` or name=tag:x of a device to run, with a SOCKS5 proxy; may be repeated", func(s string) error {
		name, who, ok := strings.Cut(s, "=")
		if !ok || name == "" || who == "" {
			return errors.New("want name=login or name=tag:x")
		}
		c.devices = append(c.devices, deviceSpec{name, identity(who)})
		return nil
	})
	f.BoolVar(&c.json, "json", false, "print JSON")
	f.BoolVar(&verbose, "verbose", false, "log to standard error")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	if f.NArg() > 0 {
		return c, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if verbose {
		c.tailnet.Logf = func(format string, args ...any) { _, _ = fmt.Fprintf(stderr, format+"\n", args...) }
	}
	return c, nil
}

func identity(who string) tailnet.Identity {
	if strings.HasPrefix(who, "tag:") {
		return tailnet.Identity{Tags: strings.Split(who, ",")}
	}
	return tailnet.Identity{Login: who}
}

// run starts the tailnet, prints what it is, and stops it when ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	c, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)
	t, err := tailnet.Start(ctx, c.tailnet)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if err := loadPolicy(t, c.policy); err != nil {
		return err
	}
	r, err := describe(ctx, t, c)
	if err != nil {
		return err
	}
	if err := r.print(stdout, c.json); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-reload:
			if err := loadPolicy(t, c.policy); err != nil {
				_, _ = fmt.Fprintln(stderr, "testtailnet: keeping the old policy:", err)
			}
		}
	}
}

func loadPolicy(t *tailnet.Tailnet, path string) error {
	if path == "" {
		return nil
	}
	file, err := os.ReadFile(path) //nolint:gosec // the user names it
	if err != nil {
		return err
	}
	p, err := tailnet.ParsePolicy(file)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return t.SetPolicy(p)
}

// report is what the program prints.
type report struct {
	URL           string         `json:"url"` // control server and HTTP API
	Domain        string         `json:"domain"`
	ACMEDirectory string         `json:"acmeDirectory,omitempty"`
	Keys          []keyReport    `json:"keys,omitempty"`
	OAuthClients  []oauthReport  `json:"oauthClients,omitempty"`
	Devices       []deviceReport `json:"devices,omitempty"`
	Environment   []string       `json:"environment"` // for other processes
	Roots         string         `json:"roots,omitempty"`
}

type keyReport struct {
	Identity string `json:"identity"`
	Key      string `json:"key"`
}

type oauthReport struct {
	Tags   string `json:"tags"`
	ID     string `json:"id"`
	Secret string `json:"secret"`
}

type deviceReport struct {
	Name     string `json:"name"`
	Identity string `json:"identity"`
	Address  string `json:"address"`
	Proxy    string `json:"proxy"`
}

// describe makes the keys, clients and devices that were asked for.
func describe(ctx context.Context, t *tailnet.Tailnet, c config) (*report, error) {
	r := &report{URL: t.URL(), Domain: t.Domain(), Environment: t.Environ(), Roots: string(t.RootsPEM())}
	if !c.tailnet.NoHTTPS {
		r.ACMEDirectory = t.ACMEDirectory()
	}
	for _, id := range c.keys {
		r.Keys = append(r.Keys, keyReport{id.String(), t.AuthKey(id)})
	}
	for _, client := range c.oauth {
		id, secret := t.OAuthClient(client.Tags...)
		r.OAuthClients = append(r.OAuthClients, oauthReport{client.String(), id, secret})
	}
	for _, spec := range c.devices {
		d, err := t.Device(ctx, spec.name, spec.identity)
		if err != nil {
			return nil, err
		}
		r.Devices = append(r.Devices, deviceReport{d.FQDN(), spec.identity.String(), d.Addrs()[0].String(), d.ProxyURL().String()})
	}
	return r, nil
}

func (r *report) print(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(tw, format+"\n", args...) } // Flush reports errors
	p("Control server and API\t%s", r.URL)
	p("Domain\t%s", r.Domain)
	for _, k := range r.Keys {
		p("Auth key of %s\t%s", k.Identity, k.Key)
	}
	for _, o := range r.OAuthClients {
		p("OAuth client of %s\t%s %s", o.Tags, o.ID, o.Secret)
	}
	for _, d := range r.Devices {
		p("Device %s of %s\t%s by %s", d.Name, d.Identity, d.Address, d.Proxy)
	}
	p("\nEnvironment for processes that join:")
	for _, e := range r.Environment {
		p("export %s", e)
	}
	return tw.Flush()
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"

	"github.com/tailhelm/tailhelm/internal/kubeconfig"
)

// askTailscaled asks whether this device is on the tailnet, and completes the target.
func (r *run) askTailscaled(ctx context.Context) Step {
	var err error
	if r.status, err = r.Tailscaled.Status(ctx); err != nil {
		return fail(fmt.Sprintf("tailscaled does not answer: %v", err), "Start Tailscale on this device, and see that you may use it: tailscale status.")
	}
	if s := r.status; s.BackendState != ipn.Running.String() {
		return fail("the state of tailscaled is "+s.BackendState, stateAdvice(s))
	}
	if r.prefs, err = r.Tailscaled.GetPrefs(ctx); err != nil {
		return fail(fmt.Sprintf("tailscaled does not tell its preferences: %v", err), "See that you may use it: tailscale debug prefs.")
	}
	who, err := kubeconfig.Self(r.status)
	if err != nil {
		return fail(err.Error(), "")
	}
	if r.target.Short() {
		suffix, err := kubeconfig.Suffix(r.status)
		if err != nil {
			return fail(err.Error(), "")
		}
		r.target = r.target.Complete(suffix)
	}
	return ok(fmt.Sprintf("%s is on the tailnet; to proxies it is %s", trimDot(r.status.Self.DNSName), who))
}

// stateAdvice says what to do in a state other than Running.
func stateAdvice(s *ipnstate.Status) string {
	switch {
	case s.BackendState == ipn.NeedsMachineAuth.String():
		return "An administrator has to approve this device in the admin console."
	case s.BackendState == ipn.Starting.String():
		return "Try again in a moment."
	case s.AuthURL != "":
		return "Log in: " + s.AuthURL
	}
	return "Log in: tailscale up."
}

// place is a device or a Service of the tailnet.
type place struct {
	name    string
	addrs   []netip.Addr
	service bool
	// absent says why it may not answer, or is empty.
	absent string
}

// is is what the place is, for a sentence.
func (p *place) is() string {
	if p.service {
		return "the Service " + p.name
	}
	return "the device " + p.name
}

// places are the devices and Services that this device can see.
func (r *run) places() []*place {
	var all []*place
	for _, peer := range r.status.Peer {
		p := &place{name: trimDot(peer.DNSName), addrs: peer.TailscaleIPs}
		if !peer.Online {
			p.absent = "it is offline"
			if !peer.LastSeen.IsZero() {
				p.absent += " since " + peer.LastSeen.UTC().Format(time.RFC3339)
			}
		}
		all = append(all, p)
	}
	services := map[string]*place{}
	for _, record := range r.status.ExtraRecords {
		addr, err := netip.ParseAddr(record.Value)
		if err != nil {
			continue // a record of another type
		}
		name := trimDot(record.Name)
		if services[name] == nil {
			services[name] = &place{name: name, service: true}
			all = append(all, services[name])
		}
		services[name].addrs = append(services[name].addrs, addr)
	}
	for _, p := range services {
		if !slices.ContainsFunc(p.addrs, r.routed) {
			p.absent = "no replica of it is connected that this device can see"
		}
	}
	return all
}

// routed reports whether a peer takes packets for addr.
func (r *run) routed(addr netip.Addr) bool {
	for _, peer := range r.status.Peer {
		if peer.AllowedIPs != nil && peer.AllowedIPs.ContainsFunc(func(p netip.Prefix) bool { return p.IsSingleIP() && p.Addr() == addr }) {
			return true
		}
	}
	return false
}

// resolve finds who has the name, and compares that with what kubectl would find.
func (r *run) resolve(ctx context.Context) Step {
	places := r.places()
	index := slices.IndexFunc(places, func(p *place) bool { return p.name == r.target.Host })
	addrs, err := r.Lookup(ctx, r.target.Host)
	if index < 0 && err == nil {
		// A name of another domain may lead to the tailnet, with a certificate to match.
		index = slices.IndexFunc(places, func(p *place) bool { return slices.ContainsFunc(addrs, p.has) })
	}
	switch {
	case index < 0 && err == nil:
		return fail(fmt.Sprintf("%s is at %s, where this device can see nothing of the tailnet", r.target.Host, list(addrs)), r.unknownAdvice(places))
	case index < 0:
		return fail(fmt.Sprintf("this device can see no device or Service %s", r.target.Host), r.unknownAdvice(places))
	case err != nil:
		return fail(fmt.Sprintf("%s has the addresses %s, and this device cannot resolve the name: %v", places[index].is(), list(places[index].addrs), err), r.dnsAdvice())
	case !slices.ContainsFunc(addrs, places[index].has):
		return fail(fmt.Sprintf("%s has the addresses %s, and this device resolves the name to %s", places[index].is(), list(places[index].addrs), list(addrs)), r.dnsAdvice())
	}
	r.place = places[index]
	s := ok(fmt.Sprintf("%s is %s, at %s", r.target.Host, r.place.is(), list(addrs)))
	if r.place.absent != "" {
		s.Found += "; " + r.place.absent
	}
	return s
}

func (p *place) has(addr netip.Addr) bool { return slices.Contains(p.addrs, addr) }

// unknownAdvice says what may be the matter with a name that leads nowhere. A device that
// comes while another one has its name gets a number behind it.
func (r *run) unknownAdvice(places []*place) string {
	label, domain, _ := strings.Cut(r.target.Host, ".")
	alike := regexp.MustCompile(`^` + regexp.QuoteMeta(regexp.MustCompile(`-\d+$`).ReplaceAllString(label, "")) + `(-\d+)?\.` + regexp.QuoteMeta(domain) + `$`)
	var names []string
	for _, p := range places {
		if alike.MatchString(p.name) {
			names = append(names, p.name)
		}
	}
	if len(names) > 0 {
		slices.Sort(names)
		return fmt.Sprintf("Is it %s? A device gets a number when another one has its name.", strings.Join(names, " or "))
	}
	return "Look at the spelling. If it is right, ask an administrator whether the proxy is on the tailnet, and whether a grant with \"ip\" lets you reach it: without one, this device does not see it."
}

// dnsAdvice says why MagicDNS may not count on this device.
func (r *run) dnsAdvice() string {
	switch {
	case r.status.CurrentTailnet != nil && !r.status.CurrentTailnet.MagicDNSEnabled:
		return "Ask an administrator to enable MagicDNS in the admin console."
	case !r.prefs.CorpDNS:
		return "This device does not use the tailnet's DNS: tailscale set --accept-dns=true."
	}
	return "See that this device uses the tailnet's DNS: tailscale dns status."
}

func list(addrs []netip.Addr) string {
	text := make([]string, 0, len(addrs))
	for _, a := range addrs {
		text = append(text, a.String())
	}
	return strings.Join(text, ", ")
}

func trimDot(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

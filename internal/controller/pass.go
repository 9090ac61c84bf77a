// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"slices"
	"strings"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
)

// pass is one look at one group.
type pass struct {
	*fleet
	groups *groups
	// group is the fleet's parent.
	group *v1alpha1.ProxyGroup
	// class is the ProxyClass' spec, or nil.
	class *v1alpha1.ProxyClassSpec

	// What was found, for the conditions.
	foreign    bool   // invalid because the Service is another's
	noClass    string // why the pods cannot be made like the ProxyClass
	noEndpoint string // why replicas have no static endpoint

	trials int // how many node ports were tried out
}

// newPass returns a pass over group.
func (g *groups) newPass(group *v1alpha1.ProxyGroup) *pass {
	p := &pass{fleet: g.newFleet(proxyGroupKind, group, g.tagsOf(group)), groups: g, group: group}
	p.sharedName, p.current, p.leave = tlsSecretName(group.Name), p.serves, p.leaveServices
	return p
}

// tagsOf returns the tags of the group's devices.
func (g *groups) tagsOf(group *v1alpha1.ProxyGroup) []string {
	if len(group.Spec.Tags) > 0 {
		return tagNames(group.Spec.Tags)
	}
	if noted := group.Annotations[annotationTags]; noted != "" {
		return strings.Split(noted, ",")
	}
	return g.config.Tags
}

// tagNames returns tags as strings.
func tagNames(tags []v1alpha1.Tag) []string {
	var names []string
	for _, tag := range tags {
		names = append(names, string(tag))
	}
	return names
}

// run makes the group what its spec says, as far as that is possible now. Errors of
// the Tailscale API and what people have to mend are noted; those of the API server are
// returned.
func (p *pass) run(ctx context.Context) error {
	if err := p.observe(ctx); err != nil {
		return err
	}
	if err := p.noteDevices(ctx); err != nil {
		return err
	}
	if err := p.validate(ctx); err != nil || p.invalid != "" {
		return err
	}
	if err := p.ensureService(ctx); err != nil || !p.mayRun() {
		return err
	}
	if !p.foreign { // replicas that are to stop need neither, and a Secret that is another's keeps none running
		if err := p.ensureSecrets(ctx); err != nil || p.invalid != "" {
			return err
		}
		if err := p.ensureKeys(ctx); err != nil {
			return err
		}
	}
	if p.noClass != "" {
		return nil // what runs goes on as it is
	}
	if err := p.ensureWorkload(ctx); err != nil || p.invalid != "" {
		return err
	}
	return p.tidy(ctx)
}

// mayRun reports whether there is anything to run replicas for, or to stop.
func (p *pass) mayRun() bool {
	if p.foreign || p.noClass != "" {
		return p.ran()
	}
	return p.owns(p.serviceName()) // without the Service there is nothing to serve on
}

// ran reports whether the group has replicas, or had them.
func (p *pass) ran() bool {
	return slices.ContainsFunc(p.replicas, func(r replica) bool { return r.state != nil })
}

// owns reports whether the group noted a Service as its own.
func (p *pass) owns(service string) bool {
	return p.group.Status.Tailnet != nil && slices.Contains(p.group.Status.Tailnet.Services, service)
}

// serviceName is the name of the group's Tailscale Service.
func (p *pass) serviceName() string { return "svc:" + p.group.Hostname() }

// forgetService removes the note of a Service that is gone, or another's.
func (p *pass) forgetService(name string) {
	t := p.tailnetObjects()
	t.Services = slices.DeleteFunc(t.Services, func(other string) bool { return other == name })
}

// serves reports whether the pod serves the Service and has the mode that the spec
// wants: after a change, pods go on under the old ones until they are replaced.
func (p *pass) serves(r replica) bool {
	for name, want := range map[string]string{"--service=": p.serviceName(), "--mode=": string(p.group.Mode())} {
		for _, c := range r.pod.Spec.Containers {
			for _, arg := range c.Args {
				if value, ok := strings.CutPrefix(arg, name); ok && value != want {
					return false
				}
			}
		}
	}
	return true
}

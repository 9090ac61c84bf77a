// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/workload"
)

// pass is one look at one group.
type pass struct {
	*groups
	// group is the group as the API server has it, but for its status, which is changed
	// in place; seen is the status that the API server has.
	group *v1alpha1.ProxyGroup
	seen  *v1alpha1.ProxyGroupStatus
	// set are the group's objects.
	set workload.Set
	// class is the ProxyClass' spec, or nil.
	class *v1alpha1.ProxyClassSpec

	replicas []replica
	tls      *corev1.Secret

	// What was found, for the conditions.
	invalid    string // why the group cannot be as its spec wants it
	foreign    bool   // invalid because the Service is another's
	noClass    string // why the pods cannot be made like the ProxyClass
	noEndpoint string // why replicas have no static endpoint
	apiErr     error  // the first error of the Tailscale API
	// noKey is when replicas that need an auth key may have it, by their numbers.
	noKey map[int]time.Time

	trials int // how many node ports were tried out

	after time.Duration // when to look again; 0: no special wish
}

// newPass returns a pass over group.
func (g *groups) newPass(group *v1alpha1.ProxyGroup) *pass {
	controller, block := true, true
	return &pass{
		groups: g, group: group, seen: group.Status.DeepCopy(), noKey: map[int]time.Time{},
		set: workload.Set{
			Client: g.client, Live: g.live, Namespace: g.config.Namespace,
			Labels: map[string]string{labelManaged: "true", labelParentType: parentProxyGroup, labelParent: group.Name},
			Owner: metav1.OwnerReference{
				APIVersion: v1alpha1.GroupVersion.String(), Kind: kindProxyGroup, Name: group.Name, UID: group.UID,
				Controller: &controller, BlockOwnerDeletion: &block,
			},
		},
	}
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
	if err := p.ensureSecrets(ctx); err != nil || p.invalid != "" && !p.foreign {
		return err
	}
	if err := p.ensureKeys(ctx); err != nil {
		return err
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

// tags are those of the Service and the devices, sorted.
func (p *pass) tags() []string {
	tags := slices.Clone(p.config.Tags)
	if len(p.group.Spec.Tags) > 0 {
		tags = tags[:0]
		for _, tag := range p.group.Spec.Tags {
			tags = append(tags, string(tag))
		}
	}
	slices.Sort(tags)
	return slices.Compact(tags)
}

// lookAgain asks for a pass in d or sooner.
func (p *pass) lookAgain(d time.Duration) {
	if p.after == 0 || d < p.after {
		p.after = d
	}
}

// noteAPI notes an error of the Tailscale API, and that it is to be tried again. It
// returns err when it is another error.
func (p *pass) noteAPI(err error) error {
	if !isAPI(err) {
		return err
	}
	if p.apiErr == nil {
		p.apiErr = err
	}
	p.lookAgain(p.gate.after(err))
	return nil
}

// tailnetObjects returns the notes of what the group has in the tailnet, to change.
func (p *pass) tailnetObjects() *v1alpha1.TailnetObjects {
	if p.group.Status.Tailnet == nil {
		p.group.Status.Tailnet = &v1alpha1.TailnetObjects{}
	}
	return p.group.Status.Tailnet
}

// forgetService removes the note of a Service that is gone, or another's.
func (p *pass) forgetService(name string) {
	t := p.tailnetObjects()
	t.Services = slices.DeleteFunc(t.Services, func(other string) bool { return other == name })
}

// writeStatus writes the status if it has changed. A status that somebody else changed
// meanwhile is an error: notes must not be lost.
func (p *pass) writeStatus(ctx context.Context) error {
	if t := p.group.Status.Tailnet; t != nil && len(t.Services)+len(t.Devices) == 0 {
		p.group.Status.Tailnet = nil
	}
	if equality.Semantic.DeepEqual(p.seen, &p.group.Status) {
		return nil
	}
	base := p.group.DeepCopy()
	base.Status = *p.seen
	status := p.group.Status
	if err := p.client.Status().Patch(ctx, p.group, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})); err != nil {
		p.group.Status = status
		return fmt.Errorf("writing the status: %w", err)
	}
	p.seen = p.group.Status.DeepCopy()
	if status.Tailnet != nil && p.group.Status.Tailnet == nil {
		return errors.New("the API server drops fields of the status: its CustomResourceDefinition of ProxyGroups is older than this operator, upgrade it")
	}
	return nil
}

// isNotOurs reports whether err is an object that somebody else has.
func isNotOurs(err error) (*workload.NotOursError, bool) {
	var notOurs *workload.NotOursError
	return notOurs, errors.As(err, &notOurs)
}

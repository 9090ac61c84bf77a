// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/tailhelm/tailhelm/api/v1alpha1"
	"github.com/tailhelm/tailhelm/internal/health"
	"github.com/tailhelm/tailhelm/internal/tailapi"
)

// servicePorts are those of a group's Service: HTTPS, and HTTP that redirects.
var servicePorts = []string{"tcp:443", "tcp:80"}

const serviceComment = "Kubernetes API server. Managed by tailhelm, which repairs changes: edit the ProxyGroup instead."

// self is the group as the owner of a Service.
func (p *pass) self() owner {
	return owner{OperatorID: p.groups.cluster, Resource: &resource{Kind: kindProxyGroup, Name: p.group.Name, UID: p.group.UID}}
}

// ensureService makes, adopts or repairs the group's Tailscale Service. It sets foreign
// when it is another's.
func (p *pass) ensureService(ctx context.Context) error {
	name := p.serviceName()
	wanted := name + " " + strings.Join(p.tags, ",") + " " + p.group.Annotations[annotationTakeOver]
	if !p.mustVerify(wanted) {
		return nil
	}
	var existing *tailapi.Service
	err := p.breaker.do(func(api *tailapi.Client) (err error) {
		existing, err = api.Service(ctx, name)
		return err
	})
	if err == nil {
		err = p.reconcileService(ctx, existing, wanted)
	}
	return p.noteAPI(err)
}

// mustVerify reports whether the Service is to be looked at now.
func (p *pass) mustVerify(wanted string) bool {
	p.groups.mu.Lock()
	last := p.groups.verified[p.group.UID]
	p.groups.mu.Unlock()
	age := p.config.timing.resync
	if slices.ContainsFunc(p.wanted(), func(r replica) bool { return r.running() && r.checks()[health.CheckService] != "" }) {
		age = p.config.timing.suspect
	}
	if last.wanted != wanted || !p.owns(p.serviceName()) || time.Since(last.at) >= age {
		return true
	}
	p.lookAgain(age - time.Since(last.at))
	return false
}

// reconcileService compares the Service that exists, if any, with the one that the group
// wants.
func (p *pass) reconcileService(ctx context.Context, existing *tailapi.Service, wanted string) error {
	name := p.serviceName()
	if existing == nil {
		reason, what := "TailscaleServiceCreated", "created"
		if p.owns(name) {
			reason, what = "TailscaleServiceRepaired", "made anew, because it was gone from the tailnet,"
		}
		return p.putService(ctx, tailapi.Service{Name: name}, reason, what)
	}
	state, whose := claimOf(existing.Annotations, p.self(), func(r resource) bool { return p.gone(ctx, r) })
	takeOver := p.group.Annotations[annotationTakeOver] == name
	switch {
	case state == claimOurs && p.asWanted(existing):
		if !p.owns(name) { // the note was lost
			if err := p.noteService(ctx, name); err != nil {
				return err
			}
		}
		p.groups.mu.Lock()
		p.groups.verified[p.group.UID] = verification{wanted, time.Now()}
		p.groups.mu.Unlock()
		return nil
	case state == claimOurs, state == claimUnmarked && p.owns(name):
		return p.putService(ctx, *existing, "TailscaleServiceRepaired", "repaired, because it was changed on the tailnet,")
	case state == claimAdoptable:
		return p.putService(ctx, *existing, "TailscaleServiceAdopted", "adopted from an owner that is gone")
	case takeOver:
		return p.putService(ctx, *existing, "TailscaleServiceTakenOver", "taken over from "+whose+", as the annotation says,")
	}
	p.forgetService(name)
	p.foreign = true
	p.invalid = fmt.Sprintf("the Tailscale Service %s belongs to %s: choose another name in spec.kubeAPIServer.hostname; or, if that owner is gone for good, "+
		"delete the Service in the admin console, or annotate this ProxyGroup with %s=%s", name, whose, annotationTakeOver, name)
	return nil
}

// asWanted reports whether a Service of ours needs no repair.
func (p *pass) asWanted(s *tailapi.Service) bool {
	return sets.New(s.Tags...).Equal(sets.New(p.tags...)) && sets.New(s.Ports...).Equal(sets.New(servicePorts...)) && s.Annotations[ownerAnnotation] == p.self().annotation()
}

// putService writes a Service as the group wants it; what else it has stays. It is
// noted before, so that it is never forgotten.
func (p *pass) putService(ctx context.Context, s tailapi.Service, reason, what string) error {
	if err := p.noteService(ctx, s.Name); err != nil {
		return err
	}
	s.Annotations = maps.Clone(s.Annotations)
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	s.Annotations[ownerAnnotation] = p.self().annotation()
	s.Comment, s.Tags, s.Ports = serviceComment, p.tags, servicePorts
	if err := p.breaker.do(func(api *tailapi.Client) error { return api.PutService(ctx, s) }); err != nil {
		return err
	}
	p.event(corev1.EventTypeNormal, reason, "EnsureTailscaleService", "Tailscale Service %s was %s", s.Name, strings.TrimSuffix(what, ","))
	// Another cluster may have written it at the same time, and the last one wins: look
	// who it was.
	p.lookAgain(p.config.timing.suspect / 2)
	return nil
}

// noteService notes that the group has a Service.
func (p *pass) noteService(ctx context.Context, name string) error {
	if p.owns(name) {
		return nil
	}
	p.tailnetObjects().Services = append(p.tailnetObjects().Services, name)
	return p.writeStatus(ctx)
}

// gone reports whether a group of this cluster does not exist any more. When that
// cannot be found out, it exists.
func (p *pass) gone(ctx context.Context, r resource) bool {
	other := &v1alpha1.ProxyGroup{}
	err := p.live.Get(ctx, types.NamespacedName{Name: r.Name}, other)
	return apierrors.IsNotFound(err) || err == nil && other.UID != r.UID
}

// deleteService deletes a Service that was noted, unless it is another's by now.
func (p *pass) deleteService(ctx context.Context, name string) error {
	err := p.breaker.do(func(api *tailapi.Client) error {
		existing, err := api.Service(ctx, name)
		if err != nil || existing == nil {
			return err
		}
		if state, _ := claimOf(existing.Annotations, p.self(), func(resource) bool { return false }); state == claimForeign {
			return nil
		}
		if err := api.DeleteService(ctx, name); err != nil {
			return err
		}
		p.event(corev1.EventTypeNormal, "TailscaleServiceDeleted", "DeleteTailscaleService", "Tailscale Service %s was deleted", name)
		return nil
	})
	if err != nil {
		return err
	}
	p.forgetService(name)
	return nil
}

// leaveServices deletes the Services that were noted.
func (p *pass) leaveServices(ctx context.Context) error {
	var errs []error
	for _, name := range slices.Clone(p.tailnetObjects().Services) {
		errs = append(errs, p.deleteService(ctx, name))
	}
	return errors.Join(errs...)
}

// firstAPI returns the first error of the Tailscale API among errs, and the others.
func firstAPI(errs ...error) (api, other error) {
	for _, err := range errs {
		if isAPI(err) && api == nil {
			api = err
		} else if !isAPI(err) {
			other = errors.Join(other, err)
		}
	}
	return api, other
}

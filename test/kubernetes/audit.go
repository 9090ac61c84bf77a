// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

// AuditFilter selects audit events. An empty field selects all; the zero value
// selects every event.
type AuditFilter struct {
	// ID is the audit ID, which the API server sends to clients as the response
	// header Audit-Id.
	ID types.UID
	// User is who authenticated, ImpersonatedUser on whose behalf.
	User, ImpersonatedUser string
	// Verb is as RBAC says it: get, list, watch, create, ...
	Verb string
	// Resource, Subresource, Namespace and Name are of the object.
	Resource, Subresource, Namespace, Name string
	// Stage is auditv1.StageResponseStarted or StageResponseComplete. A request that
	// is not long-running has only the latter.
	Stage auditv1.Stage
	// Match, if set, has the last word.
	Match func(*auditv1.Event) bool
}

func (f AuditFilter) selects(e *auditv1.Event) bool {
	var impersonated, resource, subresource, namespace, name string
	if e.ImpersonatedUser != nil {
		impersonated = e.ImpersonatedUser.Username
	}
	if ref := e.ObjectRef; ref != nil {
		resource, subresource, namespace, name = ref.Resource, ref.Subresource, ref.Namespace, ref.Name
	}
	for _, field := range [][2]string{
		{string(f.ID), string(e.AuditID)},
		{f.User, e.User.Username},
		{f.ImpersonatedUser, impersonated},
		{f.Verb, e.Verb},
		{f.Resource, resource},
		{f.Subresource, subresource},
		{f.Namespace, namespace},
		{f.Name, name},
		{string(f.Stage), string(e.Stage)},
	} {
		if want, got := field[0], field[1]; want != "" && want != got {
			return false
		}
	}
	return f.Match == nil || f.Match(e)
}

// AuditEvents are the selected events that the API server has logged so far, in the
// order of the log: what it was asked, and by whom. Bodies are not logged. The API
// server logs a request just after it has answered it; to look for the trace of a
// certain request, use [Cluster.WaitForAuditEvent].
func (c *Cluster) AuditEvents(filter AuditFilter) ([]auditv1.Event, error) {
	all, err := c.audit.read()
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	var selected []auditv1.Event
	for i := range all {
		if filter.selects(&all[i]) {
			selected = append(selected, *all[i].DeepCopy())
		}
	}
	return selected, nil
}

// WaitForAuditEvent waits until the log has a selected event and returns the first.
func (c *Cluster) WaitForAuditEvent(ctx context.Context, filter AuditFilter) (*auditv1.Event, error) {
	var events []auditv1.Event
	err := wait.PollUntilContextCancel(ctx, pollInterval, true, func(context.Context) (bool, error) {
		var err error
		events, err = c.AuditEvents(filter)
		return len(events) > 0, err
	})
	if err != nil {
		return nil, fmt.Errorf("wait for audit event %+v: %w", filter, err)
	}
	return &events[0], nil
}

// auditLog reads the log as it grows.
type auditLog struct {
	path string

	mu     sync.Mutex
	offset int64 // in bytes: how far events goes
	events []auditv1.Event
}

// read returns all events up to now. The caller does not change them.
func (l *auditLog) read() ([]auditv1.Event, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := os.Open(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	added, err := io.ReadAll(io.NewSectionReader(f, l.offset, 1<<62))
	if err != nil {
		return nil, err
	}
	// The last line may be half written: it is read again when it is complete.
	added = added[:bytes.LastIndexByte(added, '\n')+1]
	for line := range bytes.Lines(added) {
		var event auditv1.Event
		if err := json.Unmarshal(line, &event); err != nil {
			return nil, fmt.Errorf("%s at %d: %w", l.path, l.offset, err)
		}
		l.events = append(l.events, event)
		l.offset += int64(len(line))
	}
	return slices.Clip(l.events), nil
}

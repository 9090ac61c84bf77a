// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"log/slog"
	"time"

	"k8s.io/client-go/rest"

	"github.com/tailhelm/tailhelm/internal/tailapi"
)

// Config is what the controllers work with.
type Config struct {
	// API is the way to the Tailscale API; nil when the operator has no credentials for
	// it. Groups then say so.
	API *tailapi.Client
	// Cluster is the way to the API server, with the operator's own rights.
	Cluster *rest.Config
	// DefaultClass is the ProxyClass of groups that name none, or "".
	DefaultClass string
	// Impersonator is the ServiceAccount with whose tokens replicas impersonate callers.
	Impersonator string
	// InstallCRDs makes and upgrades the CustomResourceDefinitions.
	InstallCRDs bool
	// LeaderElectionID is the name of the Lease that the one of several operators holds
	// which works; with "" this one works without asking.
	LeaderElectionID string
	// Log gets what happens.
	Log *slog.Logger
	// LoginServer is the control server of the replicas; "" means Tailscale's.
	LoginServer string
	// Namespace holds the operator and all objects of groups.
	Namespace string
	// Operator is the name of this operator: a cluster may have several, each with
	// groups of its own. With "" all groups are this one's.
	Operator string
	// Release is the name of the operator's Helm release.
	Release string
	// Tags are those of groups that name none.
	Tags []string
	// WorkloadsDir is the folder with the templates of the groups' objects.
	WorkloadsDir string

	timing timing
}

// timing is how long the controllers wait for what.
type timing struct {
	// resync is how often the Tailscale Service is looked at, and the Tailscale API asked for a
	// recorder, when nothing happens.
	resync time.Duration
	// suspect is how often it is looked at while replicas say that they are no hosts of it.
	suspect time.Duration
	// refused is how long to wait after an error that only a person can mend.
	refused time.Duration
	// drain is how long a deleted group's pods may take to end, if their grace periods are not longer.
	drain time.Duration
	// abandon is how long deletion tries to delete what is in the tailnet.
	abandon time.Duration
	// reissue is the least time between two auth keys of a replica.
	reissue time.Duration
	// keyLife is how long an auth key can be used.
	keyLife time.Duration
	// keyEvery is how often a replica may have an auth key in the long run.
	keyEvery time.Duration
	// backoff is the first and the longest wait for an API that is away.
	backoff, backoffMax time.Duration
}

// usual is the timing outside of tests. abandon is documented.
var usual = timing{
	resync: 2 * time.Minute, suspect: 10 * time.Second, refused: time.Minute, drain: 2 * time.Minute, abandon: 24 * time.Hour,
	reissue: 30 * time.Second, keyLife: time.Hour, keyEvery: 10 * time.Minute, backoff: time.Second, backoffMax: time.Minute,
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

// seedVariable repeats a run of tests that choose at random.
const seedVariable = "TAILHELM_TEST_SEED"

// seed is what the choices of a test come from. It is printed.
func seed(t *testing.T) uint64 {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if value := os.Getenv(seedVariable); value != "" {
		n = must[uint64](t)(strconv.ParseUint(value, 10, 64))
	}
	t.Logf("%s=%d", seedVariable, n)
	return n
}

// mixedCaller is a caller with the ways in which it asks.
type mixedCaller struct {
	*caller
	groups    []string
	namespace string
	base      *rest.Config
	shared    map[int]*kubernetes.Clientset // by the major version of HTTP; its connections serve all requests
}

// protocolCheck errs for answers in another version of HTTP.
type protocolCheck struct {
	major int
	next  http.RoundTripper
}

func (p protocolCheck) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := p.next.RoundTrip(r)
	if err == nil && res.ProtoMajor != p.major {
		_ = res.Body.Close()
		return nil, fmt.Errorf("the answer is in HTTP/%d, want %d", res.ProtoMajor, p.major)
	}
	return res, err
}

func (p protocolCheck) WrappedRoundTripper() http.RoundTripper { return p.next }

// over is the caller's configuration for a version of HTTP. Each client of it has
// connections of its own.
func (m *mixedCaller) over(major int) *rest.Config {
	config := rest.CopyConfig(m.base)
	if major == 1 {
		config.NextProtos = []string{"http/1.1"}
	}
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return protocolCheck{major, next} })
	return config
}

// with calls use with a client over a version of HTTP, on connections that are
// shared with the caller's other requests, or of this client alone.
func (m *mixedCaller) with(major int, own bool, use func(*kubernetes.Clientset) error) error {
	if !own {
		return use(m.shared[major])
	}
	transport, err := rest.HTTPClientFor(m.over(major))
	if err != nil {
		return err
	}
	defer utilnet.CloseIdleConnectionsFor(transport.Transport)
	client, err := kubernetes.NewForConfigAndClient(m.over(major), transport)
	if err != nil {
		return err
	}
	return use(client)
}

// checkWhoami errs unless the API server takes the caller for itself.
func (m *mixedCaller) checkWhoami(ctx context.Context, client *kubernetes.Clientset) error {
	review, err := client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if who := review.Status.UserInfo; who.Username != m.user || !slices.Equal(who.Groups, m.groups) || len(who.Extra) > 0 {
		return fmt.Errorf("%s in %v is taken for %+v", m.user, m.groups, who)
	}
	return nil
}

// checkAccess errs unless the caller may change what is in its own namespace, and
// nothing in another's.
func (m *mixedCaller) checkAccess(ctx context.Context, client *kubernetes.Clientset, namespace string) error {
	review, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: namespace, Verb: "update", Resource: "pods"}},
	}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if review.Status.Allowed != (namespace == m.namespace) {
		return fmt.Errorf("%s may change %s: %v; its own is %s", m.user, namespace, review.Status.Allowed, m.namespace)
	}
	return nil
}

// checkList errs unless the caller can list what is its own and nothing else, and the
// refusal is its own.
func (m *mixedCaller) checkList(ctx context.Context, client *kubernetes.Clientset, namespace string) error {
	list, err := client.CoreV1().ConfigMaps(namespace).List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=mine"})
	switch {
	case namespace != m.namespace && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), fmt.Sprintf("User %q cannot list", m.user))):
		return fmt.Errorf("%s lists what is in %s: %w", m.user, namespace, err)
	case namespace == m.namespace && (err != nil || len(list.Items) != 1 || list.Items[0].Data["owner"] != m.user):
		return fmt.Errorf("%s lists %+v (%w)", m.user, list, err)
	}
	return nil
}

// checkKubectl is checkWhoami with a kubectl process.
func (m *mixedCaller) checkKubectl(ctx context.Context) error {
	out, err := m.command(ctx, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}").Output()
	if err != nil {
		return fmt.Errorf("kubectl of %s: %w", m.user, err)
	}
	if want := fmt.Sprintf(`%s ["%s"]`, m.user, strings.Join(m.groups, `","`)); string(out) != want {
		return fmt.Errorf("kubectl of %s is told %s", want, out)
	}
	return nil
}

// newMixedCallers are users with and without groups, one of them on two devices, and
// a tagged device.
func newMixedCallers(t *testing.T) []*mixedCaller {
	t.Helper()
	const everybody = "system:authenticated"
	var all []*mixedCaller
	add := func(c *caller, groups ...string) *mixedCaller {
		m := &mixedCaller{caller: c, groups: append(groups, everybody), base: c.config(), shared: map[int]*kubernetes.Clientset{}}
		for major := 1; major <= 2; major++ {
			m.shared[major] = must[*kubernetes.Clientset](t)(kubernetes.NewForConfig(m.over(major)))
		}
		all = append(all, m)
		return m
	}
	one := unique("mixed")
	add(newUser(t, shared.proxy, one, "everyone"), one, "everyone")
	two := unique("mixed")
	add(newUser(t, shared.proxy, "everyone", two), "everyone", two)
	plain := add(newUser(t, shared.proxy))
	tag := "tag:" + unique("mixed")
	add(newCaller(t, shared.proxy, tailnet.Identity{Tags: []string{tag}}), tag)
	for _, m := range all {
		m.namespace = newNamespace(t, user(m.user))
		_, err := shared.cluster.Client().CoreV1().ConfigMaps(m.namespace).Create(within(t, patience), configMap("mine", "owner", m.user), metav1.CreateOptions{})
		noError(t, err)
	}
	second := add(newCaller(t, shared.proxy, tailnet.Identity{Login: plain.user}))
	second.namespace = plain.namespace
	return all
}

// TestCallersMixed: callers who ask at the same time, in any order, over connections
// old and new: each answer belongs to its caller.
func TestCallersMixed(t *testing.T) {
	t.Parallel()
	base := seed(t)
	callers := newMixedCallers(t)
	ctx := within(t, patience)
	const workers, rounds = 12, 40
	var group sync.WaitGroup
	for worker := range workers {
		random := rand.New(rand.NewPCG(base, uint64(worker)))
		group.Go(func() {
			for round := range rounds {
				m, other := callers[random.IntN(len(callers))], callers[random.IntN(len(callers))]
				major, own, what := 1+random.IntN(2), random.IntN(4) == 0, random.IntN(100)
				err := m.with(major, own, func(client *kubernetes.Clientset) error {
					switch {
					case what < 3:
						return m.checkKubectl(ctx)
					case what < 50:
						return m.checkWhoami(ctx, client)
					case what < 75:
						return m.checkAccess(ctx, client, other.namespace)
					}
					return m.checkList(ctx, client, other.namespace)
				})
				if err != nil {
					t.Errorf("worker %d, round %d, HTTP/%d, connection of its own %v: %v", worker, round, major, own, err)
					return
				}
			}
		})
	}
	group.Wait()
}

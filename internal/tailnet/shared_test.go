// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"tailscale.com/client/local"
	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
)

const sharedDomain = "kube.tail1234.ts.net"

// group is the replicas of a test and what they share.
type group struct {
	client kubernetes.Interface
	life   time.Duration // of the certificates
	age    time.Duration // of the certificates when they are issued
	// staging are replicas that ask the staging environment.
	staging map[string]bool

	mu     sync.Mutex
	fails  error    // of orders
	orders []string // the replicas that ordered, in order
	minima []time.Duration
	// kept are the pairs that the devices of replicas have kept, by replica and name.
	kept map[[2]string]pemPair
	// rejected are replicas that the tailnet does not let host the Service.
	rejected map[string]bool
}

// reject makes the tailnet take a replica for no host of the Service, or for one again.
func (g *group) reject(replica string, rejected bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rejected[replica] = rejected
}

// issuedFor returns the names for which the tailnet issues a replica certificates: domains, as
// long as it is a host.
func (g *group) issuedFor(replica string, domains []string) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.rejected[replica] {
		return []string{replica + ".tail1234.ts.net"}
	}
	return domains
}

// pemPair is a certificate and its key in PEM.
type pemPair struct{ cert, key string }

// end returns when the certificate ends.
func (p pemPair) end(t *testing.T) time.Time {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(p.cert), []byte(p.key))
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf.NotAfter
}

// order does what Tailscale's code does on a replica's device: it returns the pair that the
// device has kept, if that is valid for long enough, and orders another otherwise.
func (g *group) order(t *testing.T, replica, domain string, validity time.Duration) (certPEM, keyPEM []byte, err error) {
	t.Helper()
	if validity <= 0 {
		return nil, nil, errors.New("such a renewal would fail out of sight")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	pair, ok := g.kept[[2]string{replica, domain}]
	if !ok || time.Until(pair.end(t)) < validity {
		g.orders, g.minima = append(g.orders, replica), append(g.minima, validity)
		if g.fails != nil {
			return nil, nil, g.fails
		}
		authority := "R13"
		if g.staging[replica] {
			authority = "(STAGING) Riddling Rhubarb R12"
		}
		from := time.Now().Add(-g.age)
		pair.cert, pair.key = newPairBy(t, authority, domain, from, from.Add(g.life))
		g.kept[[2]string{replica, domain}] = pair
	}
	return []byte(pair.cert), []byte(pair.key), nil
}

// keep gives a replica's device a pair that it has kept.
func (g *group) keep(t *testing.T, replica, domain string, from, to time.Time) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	cert, key := newPairBy(t, "R13", domain, from, to)
	g.kept[[2]string{replica, domain}] = pemPair{cert, key}
}

// setSecret makes a pair, or nothing, the content of the Secret.
func (g *group) setSecret(t *testing.T, pair pemPair) {
	t.Helper()
	if _, err := g.client.CoreV1().Secrets("n").Update(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "g-tls"}, Data: map[string][]byte{"tls.crt": []byte(pair.cert), "tls.key": []byte(pair.key)},
	}, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// fail makes orders fail from now on, or succeed again with nil.
func (g *group) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fails = err
}

// ordered returns which replicas have ordered, and for which validities.
func (g *group) ordered() (replicas []string, minima []time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.orders), slices.Clone(g.minima)
}

func newGroup(life time.Duration) *group {
	client := fake.NewClientset(
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "g-tls"}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{"tls.crt": {}, "tls.key": {}}},
		&coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "g", ResourceVersion: "1"}},
	)
	client.PrependReactor("update", "leases", refuseStale(client.Tracker()))
	return &group{life: life, client: client, kept: map[[2]string]pemPair{}, rejected: map[string]bool{}}
}

// refuseStale answers updates as an API server does: only one of those that were made of
// the same version succeeds. The fake lets each overwrite the other, so that two replicas
// could hold a Lease.
func refuseStale(tracker clienttesting.ObjectTracker) clienttesting.ReactionFunc {
	return func(action clienttesting.Action) (bool, runtime.Object, error) {
		update, ok := action.(clienttesting.UpdateAction)
		if !ok {
			return false, nil, nil
		}
		next, err := meta.Accessor(update.GetObject().DeepCopyObject())
		if err != nil {
			return true, nil, err
		}
		resource := update.GetResource()
		stored, err := tracker.Get(resource, update.GetNamespace(), next.GetName())
		if err != nil {
			return true, nil, err
		}
		current, err := meta.Accessor(stored)
		if err != nil {
			return true, nil, err
		}
		if next.GetResourceVersion() != current.GetResourceVersion() {
			return true, nil, apierrors.NewConflict(resource.GroupResource(), next.GetName(), errors.New("made of another version"))
		}
		version, err := strconv.Atoi(current.GetResourceVersion())
		if err != nil {
			return true, nil, err
		}
		next.SetResourceVersion(strconv.Itoa(version + 1))
		object, _ := next.(runtime.Object)
		return true, object, tracker.Update(resource, object, update.GetNamespace())
	}
}

// replica is one replica's certificates, running.
type replicaCertificates struct {
	*SharedCertificates
	stop context.CancelFunc
	done chan error
}

// start starts a replica on the tailnet.
func (g *group) start(t *testing.T, name string, domains ...string) *replicaCertificates {
	t.Helper()
	return g.startFor(t, "svc:kube", name, domains...)
}

// startFor starts a replica of a Service.
func (g *group) startFor(t *testing.T, service tailcfg.ServiceName, name string, domains ...string) *replicaCertificates {
	t.Helper()
	n := newTestNode(nil, quiet)
	n.status = status{state: ipn.Running, name: name + ".tail1234.ts.net"}
	c := &SharedCertificates{
		service: &Service{node: n, name: service},
		config:  SharedConfig{Client: g.client, Namespace: "n", Secret: "g-tls", Lease: "g", Identity: name, Staging: g.staging[name], Log: slog.New(slog.DiscardHandler)},
		domains: func() []string { return g.issuedFor(name, domains) },
		order: func(_ context.Context, domain string, validity time.Duration) (certPEM, keyPEM []byte, err error) {
			return g.order(t, name, domain, validity)
		},
	}
	ctx, stop := context.WithCancel(t.Context())
	r := &replicaCertificates{SharedCertificates: c, stop: stop, done: make(chan error, 1)}
	go func() { r.done <- c.Run(ctx) }()
	return r
}

// served returns the certificate that a client gets.
func (r *replicaCertificates) served(t *testing.T) *tls.Certificate {
	t.Helper()
	cert, err := r.GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// end stops a replica as the end of its process does.
func (r *replicaCertificates) end(t *testing.T) {
	t.Helper()
	r.stop()
	if err := <-r.done; err != nil {
		t.Errorf("Run returns %v", err)
	}
}

// One replica orders, all serve; when it ends, another renews in time.
func TestSharedCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life = 9 * time.Minute
		g := newGroup(life)
		a := g.start(t, "g-0", "g-0.tail1234.ts.net", sharedDomain)
		time.Sleep(time.Second)
		b := g.start(t, "g-1", sharedDomain)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if orders, _ := g.ordered(); len(orders) != 1 || orders[0] != "g-0" {
			t.Fatalf("orders of %v, want one of the first replica", orders)
		}
		first := a.served(t)
		for _, r := range []*replicaCertificates{a, b} {
			if err := r.Ready(t.Context()); err != nil || !r.served(t).Leaf.Equal(first.Leaf) || !r.Expiry().Equal(first.Leaf.NotAfter) {
				t.Errorf("ready: %v, certificate %v", err, r.served(t).Leaf.DNSNames)
			}
		}

		a.end(t)
		time.Sleep(life * 2 / 3)
		time.Sleep(life / 12)
		synctest.Wait()
		if orders, minima := g.ordered(); len(orders) != 2 || orders[1] != "g-1" || minima[1] != life/3 {
			t.Fatalf("orders of %v for validities of %v, want a renewal by the second replica, due in the last third", orders, minima)
		}
		if b.served(t).Leaf.Equal(first.Leaf) {
			t.Error("the renewed certificate is not served")
		}
		b.end(t)
	})
}

// A replica that starts when there is a good certificate orders none.
func TestSharedCertificateIsReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(9 * time.Minute)
		for _, name := range []string{"g-0", "g-1"} {
			r := g.start(t, name, sharedDomain)
			time.Sleep(time.Minute)
			synctest.Wait()
			orders, _ := g.ordered()
			if err := r.Ready(t.Context()); err != nil || len(orders) != 1 {
				t.Errorf("%s is ready: %v; orders of %v, want one in all", name, err, orders)
			}
			r.end(t)
		}
	})
}

// A certificate for another name, as after a rename, is replaced, and not taken for
// the Service's until then.
func TestSharedCertificateForAnotherName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(9 * time.Minute)
		g.fail(errors.New("no DNS"))
		other, key := newPair(t, "old.tail1234.ts.net", time.Now(), time.Now().Add(g.life))
		g.setSecret(t, pemPair{other, key})
		r := g.start(t, "g-0", sharedDomain)
		time.Sleep(time.Second)
		synctest.Wait()
		if err := r.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "old.tail1234.ts.net") || !strings.Contains(err.Error(), "no DNS") {
			t.Errorf("ready: %v, want the other name and why there is no certificate for this one", err)
		}
		g.fail(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := r.Ready(t.Context()); err != nil {
			t.Errorf("not ready: %v", err)
		}
		r.end(t)
	})
}

// A replica that the tailnet issues no certificate says why, and leaves the Lease to one that
// it issues one: at first, in a renewal, and when it stops being one that gets it.
func TestSharedCertificateIsOrderedByAHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life = 9 * time.Minute
		g := newGroup(life)
		g.reject("g-0", true)
		a := g.start(t, "g-0", sharedDomain)
		off := g.start(t, "g-1", sharedDomain)
		off.service.node.update(func(s *status) { s.state = ipn.NeedsLogin })
		time.Sleep(leaseDuration)
		synctest.Wait()
		if err := a.Ready(t.Context()); !errors.Is(err, errNoHost) {
			t.Errorf("ready: %v, want that it is no host", err)
		}
		if err := off.Ready(t.Context()); !errors.Is(err, errOffTailnet) {
			t.Errorf("ready: %v, want that it is not on the tailnet", err)
		}
		b := g.start(t, "g-2", sharedDomain)
		all := []*replicaCertificates{a, off, b}
		ordered := func(when string, want ...string) {
			t.Helper()
			synctest.Wait()
			if orders, _ := g.ordered(); !slices.Equal(orders, want) {
				t.Fatalf("%s: orders of %v, want %v", when, orders, want)
			}
			for _, r := range all {
				if err := cmp.Or(r.Ready(t.Context()), r.Warning(t.Context())); err != nil {
					t.Errorf("%s: ready: %v", when, err)
				}
			}
		}
		time.Sleep(leaseDuration)
		ordered("at first", "g-2")

		g.reject("g-2", true)
		g.reject("g-0", false)
		time.Sleep(life*2/3 + leaseDuration)
		ordered("renewal", "g-2", "g-0")

		// This time g-0 has the Lease when it is rejected, and g-1 is back on the tailnet.
		g.fail(errors.New("no DNS"))
		time.Sleep(life * 2 / 3)
		synctest.Wait()
		if err := a.Warning(t.Context()); err == nil || !strings.Contains(err.Error(), "no DNS") {
			t.Errorf("the warning is %v", err)
		}
		failed, _ := g.ordered()
		g.fail(nil)
		g.reject("g-0", true)
		off.service.node.update(func(s *status) { s.state = ipn.Running })
		time.Sleep(leaseDuration)
		ordered("the next renewal", append(failed, "g-1")...)
		for _, r := range all {
			r.end(t)
		}
	})
}

// A limit of the certificate authority is kept to, and told, whatever becomes of the Lease.
func TestSharedCertificateKeepsToALimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(9 * time.Minute)
		g.fail(limitError(t))
		r := g.start(t, "g-0", sharedDomain)
		for range 3 {
			time.Sleep(time.Minute)
			r.service.node.update(func(s *status) { s.state = ipn.Starting })
			time.Sleep(time.Minute)
			synctest.Wait()
			if err := r.Ready(t.Context()); !errors.Is(err, errOffTailnet) {
				t.Errorf("ready: %v, want that it is not on the tailnet", err)
			}
			r.service.node.update(func(s *status) { s.state = ipn.Running })
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := r.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "it is asked again at 2000-01-01T01:00:0") {
			t.Errorf("ready: %v, want the limit", err)
		}
		if orders, _ := g.ordered(); len(orders) != 1 {
			t.Errorf("%d orders before the limit ends, want 1", len(orders))
		}
		g.fail(nil)
		time.Sleep(time.Hour)
		synctest.Wait()
		if err := r.Ready(t.Context()); err != nil {
			t.Errorf("ready: %v", err)
		}
		r.end(t)
	})
}

// day is a unit of a certificate's life.
const day = 24 * time.Hour

// A replica whose device has kept a certificate shares that when the Secret is lost, so that
// there is one at once, and orders another when it is due. Replicas that have a newer one stay
// with that.
func TestSharedCertificateWasKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(90 * day)
		now := time.Now()
		cert, key := newPairBy(t, "R13", sharedDomain, now.Add(-10*day), now.Add(80*day))
		g.setSecret(t, pemPair{cert, key})
		running := g.start(t, "g-1") // it is no host any more, and orders nothing
		time.Sleep(time.Second)
		synctest.Wait()
		newer := running.served(t)

		g.setSecret(t, pemPair{})
		kept := now.Add(20 * day)
		g.keep(t, "g-0", sharedDomain, now.Add(-70*day), kept)
		g.fail(errors.New("no DNS"))
		r := g.start(t, "g-0", sharedDomain)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if err := r.Ready(t.Context()); err != nil || !r.Expiry().Equal(kept.Truncate(time.Second)) {
			t.Errorf("ready: %v, with a certificate that ends at %v; want the one that the device has kept", err, r.Expiry())
		}
		if err := r.Warning(t.Context()); err == nil || !strings.Contains(err.Error(), "no DNS") {
			t.Errorf("the warning is %v, want why the certificate is not renewed", err)
		}
		if err := running.Ready(t.Context()); err != nil || !running.served(t).Leaf.Equal(newer.Leaf) {
			t.Errorf("ready: %v, with a certificate that ends at %v; want the newer one that it had", err, running.Expiry())
		}

		g.fail(nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, r := range []*replicaCertificates{r, running} {
			if err := cmp.Or(r.Ready(t.Context()), r.Warning(t.Context())); err != nil || r.Expiry().Before(now.Add(90*day-time.Second)) {
				t.Errorf("ready: %v, with a certificate that ends at %v; want the one that was ordered", err, r.Expiry())
			}
			r.end(t)
		}
	})
}

// An authority whose certificates are due at once, as to a clock that is wrong, is asked
// again and again, but not without a pause and not without a word.
func TestSharedCertificateIsDueAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(90 * day)
		g.age = 70 * day
		r := g.start(t, "g-0", sharedDomain)
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := r.Warning(t.Context()); err == nil || !strings.Contains(err.Error(), "another is due") {
			t.Errorf("the warning is %v", err)
		}
		if orders, _ := g.ordered(); len(orders) < 4 || len(orders) > 12 {
			t.Errorf("%d orders in a minute, want some, further and further apart", len(orders))
		}
		r.end(t)
	})
}

// While replicas of the old name are still up, one of the new name gets its certificate,
// and the old ones keep theirs.
func TestSharedCertificateInARename(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(90 * time.Minute)
		old := g.start(t, "g-0", sharedDomain)
		time.Sleep(time.Minute)
		before := old.served(t)
		renamed := g.startFor(t, "svc:new", "g-1", "new.tail1234.ts.net")
		time.Sleep(time.Minute)
		synctest.Wait()
		orders, _ := g.ordered()
		if err := renamed.Ready(t.Context()); err != nil || len(orders) != 2 {
			t.Errorf("the renamed replica is ready: %v; orders of %v", err, orders)
		}
		if err := old.Ready(t.Context()); err != nil || !old.served(t).Leaf.Equal(before.Leaf) {
			t.Errorf("the replica of the old name is ready: %v; it serves the certificate for %v", err, old.served(t).Leaf.DNSNames)
		}
		renamed.end(t)
		old.end(t)
	})
}

// When replicas no longer ask the staging environment, its certificate is replaced at once,
// and once: the old replicas, which are still up, do not order against the new ones.
func TestSharedCertificateOfStaging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(90 * 24 * time.Hour)
		g.staging = map[string]bool{"old-0": true, "old-1": true}
		old := []*replicaCertificates{g.start(t, "old-0", sharedDomain), g.start(t, "old-1", sharedDomain)}
		time.Sleep(time.Minute)
		synctest.Wait()
		for _, r := range old {
			if err := r.Ready(t.Context()); err != nil || !strings.Contains(r.served(t).Leaf.Issuer.String(), "STAGING") {
				t.Fatalf("ready: %v, certificate by %s", err, r.served(t).Leaf.Issuer)
			}
		}
		g.fail(errors.New("no DNS"))
		fresh := g.start(t, "new-1", sharedDomain)
		time.Sleep(time.Second)
		synctest.Wait()
		if err := fresh.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "staging environment") {
			t.Errorf("ready: %v, want that clients do not trust the certificate", err)
		}
		g.fail(nil)
		time.Sleep(time.Minute)
		for _, r := range append(old, fresh) {
			synctest.Wait()
			if err := r.Ready(t.Context()); err != nil || strings.Contains(r.served(t).Leaf.Issuer.String(), "STAGING") {
				t.Errorf("ready: %v, certificate by %s", err, r.served(t).Leaf.Issuer)
			}
		}
		before, minima := g.ordered()
		if minima[len(minima)-1] < 89*24*time.Hour {
			t.Errorf("a certificate that is valid for %v is good enough, and the old one is", minima[len(minima)-1])
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if after, _ := g.ordered(); len(after) != len(before) {
			t.Errorf("orders of %v, and then of %v", before, after[len(before):])
		}
		for _, r := range append(old, fresh) {
			r.end(t)
		}
	})
}

// What keeps the tailnet from issuing a certificate is told by the replica that
// orders, and it goes on trying. What keeps each from ordering is told by each.
func TestSharedCertificateFailures(t *testing.T) {
	const waits = "waiting for the replica that orders it"
	for name, tc := range map[string]struct {
		domains []string
		fails   error
		want    string
		other   string // what the other replica says
	}{
		"HTTPS is off": {nil, nil, "enable HTTPS in its DNS settings", "enable HTTPS in its DNS settings"},
		"no host":      {[]string{"g-0.tail1234.ts.net"}, nil, "autoApprovers.services", "autoApprovers.services"},
		"a limit":      {[]string{sharedDomain}, limitError(t), "a limit of the certificate authority, which ends by itself: it is asked again at 2000-01-01T01:00:0", waits},
		"ACME":         {[]string{sharedDomain}, errors.New("rate limited"), "the certificate for " + sharedDomain + ": rate limited", waits},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGroup(9 * time.Minute)
				g.fail(tc.fails)
				r := g.start(t, "g-0", tc.domains...)
				waiting := g.start(t, "g-1", tc.domains...)
				time.Sleep(time.Minute)
				synctest.Wait()
				ready := []error{r.Ready(t.Context()), waiting.Ready(t.Context())}
				says := func(i int, what string) bool { return ready[i] != nil && strings.Contains(ready[i].Error(), what) }
				first, second := says(0, tc.want) && says(1, tc.other), says(1, tc.want) && says(0, tc.other)
				if !first && !second {
					t.Errorf("ready: %v, want %q of one and %q of the other", ready, tc.want, tc.other)
				}
				if strings.Contains(errors.Join(ready...).Error(), "tls.source") {
					t.Errorf("ready: %v, but replicas have no other source of certificates", ready)
				}
				orders, _ := g.ordered()
				if _, limited := local.RateLimitRetryAfter(tc.fails); limited && len(orders) != 1 {
					t.Errorf("%d orders in a minute, want one in the hour", len(orders))
				} else if n := len(orders); !limited && tc.fails != nil && (n < 2 || n > 6) {
					t.Errorf("%d orders in a minute, want some, further and further apart", n)
				}
				r.end(t)
				waiting.end(t)
			})
		})
	}
}

// limitError is what Tailscale's code returns for a limit of the certificate authority
// that ends in an hour.
func limitError(t *testing.T) error {
	t.Helper()
	client := &local.Client{OmitAuth: true, Transport: answerFunc(func(r *http.Request) *http.Response {
		return &http.Response{
			StatusCode: http.StatusTooManyRequests, Status: "429 Too Many Requests", Request: r,
			Header: http.Header{"Retry-After": {"3600"}}, Body: io.NopCloser(strings.NewReader("too many certificates")),
		}
	})}
	_, _, err := client.CertPair(t.Context(), sharedDomain)
	return err
}

// answerFunc answers requests.
type answerFunc func(*http.Request) *http.Response

func (f answerFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r), nil }

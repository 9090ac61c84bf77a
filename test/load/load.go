// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	// requestTimeout is how long a request may take, client-go's retries included.
	requestTimeout = 30 * time.Second
	// writeEvery is how many requests there are for each write.
	writeEvery = 5
)

// Config is what a load does.
type Config struct {
	// Client is the way to the API server. Its user may do everything with ConfigMaps in
	// Namespace.
	Client *rest.Config
	// Namespace is where the load has its ConfigMap, and Name the ConfigMap's name.
	Namespace, Name string
	// Rate is how many requests there are in a second, Watches how many watches.
	Rate, Watches int
	// Stream returns a command that writes back each line that it reads, by way of the
	// API server, until ctx is done: kubectl exec of cat. Nil: there is no stream.
	Stream func(ctx context.Context) *exec.Cmd
}

// Load is a client that never stops, until it is told to.
type Load struct {
	config Config
	stop   context.CancelFunc
	done   sync.WaitGroup

	// clients are by how they use connections. See the package's comment.
	fresh, shared, idle kubernetes.Interface

	watchers []*watcher
	record   record
	stream   *stream
}

// Start starts a load, which lives until [Load.Stop]. It returns when its watches have
// begun.
func Start(ctx context.Context, config Config) (_ *Load, err error) {
	l := &Load{config: config}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	defer func() {
		if err != nil {
			l.Stop()
		}
	}()
	if err := l.connect(); err != nil {
		return nil, err
	}
	object, err := l.shared.CoreV1().ConfigMaps(config.Namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: config.Name}}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("the load's ConfigMap: %w", err)
	}
	for range config.Watches {
		w, err := l.watch(life, object)
		if err != nil {
			return nil, err
		}
		l.watchers = append(l.watchers, w)
	}
	l.record.reset()
	l.request(ctx, 0) // a write
	if err := l.settle(ctx, l.record.written()); err != nil || len(l.record.written()) == 0 {
		return nil, errors.Join(fmt.Errorf("the load's first request: %q", l.record.cut("").Errors), err)
	}
	l.done.Go(func() { l.ask(life) })
	return l, l.openStream(ctx)
}

// connect makes the clients.
func (l *Load) connect() (err error) {
	config := rest.CopyConfig(l.config.Client)
	config.QPS = -1 // the load has a rate of its own
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return &observed{next: next, record: &l.record} })
	// With a proxy or a dialer of its own, each client has connections of its own.
	if l.shared, err = kubernetes.NewForConfig(config); err != nil {
		return fmt.Errorf("the load's client: %w", err)
	}
	if l.idle, err = kubernetes.NewForConfig(config); err != nil {
		return fmt.Errorf("the load's client: %w", err)
	}
	if l.fresh, err = withoutKeepAlives(config); err != nil {
		return fmt.Errorf("the load's client: %w", err)
	}
	return nil
}

// withoutKeepAlives returns a client that makes a connection for each request.
func withoutKeepAlives(config *rest.Config) (kubernetes.Interface, error) {
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	transport, err := rest.HTTPWrappersForConfig(config, &http.Transport{
		Proxy: config.Proxy, DialContext: config.Dial, TLSClientConfig: tlsConfig, TLSHandshakeTimeout: 10 * time.Second, DisableKeepAlives: true, ForceAttemptHTTP2: true,
	})
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfigAndClient(config, &http.Client{Transport: transport})
}

// Once asks the API server for its version, on a new connection, and returns how long that
// took.
func Once(ctx context.Context, config *rest.Config) (time.Duration, error) {
	client, err := withoutKeepAlives(config)
	if err != nil {
		return 0, fmt.Errorf("a client for one request: %w", err)
	}
	begin := time.Now()
	err = client.Discovery().RESTClient().Get().AbsPath("/version").Do(ctx).Error()
	return time.Since(begin), err
}

// ask sends requests at the load's rate until ctx is done, whatever became of those
// before.
func (l *Load) ask(ctx context.Context) {
	tick := time.NewTicker(time.Second / time.Duration(l.config.Rate))
	defer tick.Stop()
	for i := 1; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		l.done.Go(func() { l.request(ctx, i) })
	}
}

// client returns the one that sends the i-th request.
func (l *Load) client(i int) (kubernetes.Interface, string) {
	switch {
	case i%2 == 0:
		return l.fresh, "a connection of its own"
	case i%4 == 1:
		return l.shared, "the watches' connection"
	}
	return l.idle, "a connection that was idle"
}

// request sends the i-th request and notes what becomes of it.
func (l *Load) request(ctx context.Context, i int) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	client, by := l.client(i)
	maps, verb, begin := client.CoreV1().ConfigMaps(l.config.Namespace), "get", time.Now()
	var err error
	if i%writeEvery == 0 {
		verb = "patch"
		_, err = maps.Patch(ctx, l.config.Name, types.MergePatchType, fmt.Appendf(nil, `{"data":{"written":"%d"}}`, i), metav1.PatchOptions{})
	} else {
		_, err = maps.Get(ctx, l.config.Name, metav1.GetOptions{})
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return // the load has been stopped
	}
	if err != nil {
		err = fmt.Errorf("%s by %s, after %s: %w", verb, by, time.Since(begin).Round(time.Millisecond), err)
	} else if verb == "patch" {
		l.record.wrote(i)
	}
	l.record.add(begin, err)
}

// Cut ends a phase: it returns the figures since the last cut, or since the start. It
// waits until the watches have seen everything that was written, or ctx is done: what they
// have not seen by then is lost. A stream that has ended is begun again.
func (l *Load) Cut(ctx context.Context, name string) (Figures, error) {
	written := l.record.written()
	_ = l.settle(ctx, written) // the figures say what was lost
	figures := l.record.cut(name)
	figures.Watches = len(l.watchers)
	for _, w := range l.watchers {
		figures.EventsLost += w.missing(written)
	}
	if l.stream != nil {
		figures.StreamLives = l.stream.lives(ctx)
	}
	if !figures.StreamLives {
		if err := l.openStream(ctx); err != nil {
			return figures, err
		}
	}
	return figures, nil
}

// settle waits until the watches have seen what was written, or returns ctx's error.
func (l *Load) settle(ctx context.Context, written []int) error {
	for _, w := range l.watchers {
		if err := w.await(ctx, written); err != nil {
			return err
		}
	}
	return nil
}

// FirstSuccess returns how long after a time the first request ended well that ended
// after it, or waits for it until ctx is done.
func (l *Load) FirstSuccess(ctx context.Context, after time.Time) (time.Duration, error) {
	at, err := l.record.awaitSuccess(ctx, after)
	return at.Sub(after), err
}

// Stop ends the load.
func (l *Load) Stop() {
	l.stop()
	for _, w := range l.watchers {
		w.stop()
	}
	l.done.Wait()
	if l.stream != nil {
		l.stream.close()
	}
}

// value returns what a write put into the ConfigMap, 0 when there was none.
func value(m *corev1.ConfigMap) int {
	n, _ := strconv.Atoi(m.Data["written"]) // none is an error, too
	return n
}

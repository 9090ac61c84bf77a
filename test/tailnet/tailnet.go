// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// Options configure a tailnet. The zero value is a complete one on loopback.
type Options struct {
	// Domain is the MagicDNS suffix; "tail1234.ts.net" if empty.
	Domain string
	// NoHTTPS starts no certificate authority: devices get no certificate
	// domains, for the whole life of the tailnet. To switch certificates off
	// for a while only, see [Tailnet.SetHTTPS].
	NoHTTPS bool
	// CertificateValidity is how long a certificate is good for; 90 days if
	// zero. Short values make renewals observable.
	CertificateValidity time.Duration
	// ListenHost is the IPv4 address of this machine on which control server,
	// relay and certificate authority listen, and by which devices reach them;
	// "127.0.0.1" if empty. (Tailscale's client cannot use a control server by
	// an IPv6 address throughout.)
	ListenHost string
	// ListenPort is the control server's port; a free one if zero.
	ListenPort int
	// RestrictNetwork lets packets pass only where a grant with IP allows it.
	// Without it every device reaches every other one.
	RestrictNetwork bool
	// NodeAttrs are attributes that every device has, beside those that this package
	// gives them.
	NodeAttrs []tailcfg.NodeCapability
	// Logf receives what the servers and the devices log, until Close; nil
	// discards it. The log method of a test fits.
	Logf func(format string, args ...any)
}

// Tailnet is a running tailnet. Its methods may be called from several
// goroutines.
type Tailnet struct {
	opts    Options
	logs    *logSwitch
	dir     string // scratch space, removed by Close
	keys    *keyStore
	api     *apiServer
	faults  *faultTable
	names   *dnsServer
	ca      *authority // nil with Options.NoHTTPS
	relay   *relay
	control *controlServer

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at each change of what follows
	https    bool
	restrict bool
	policy   Policy
	users    map[string]tailcfg.UserID // by login
	nodes    map[key.NodePublic]*node  // by current key
	services map[tailcfg.ServiceName]*service
	lastID   tailcfg.NodeID           // never reused
	lastAddr netip.Addr               // neither
	c2n      map[string]chan<- []byte // replies awaited, by token
	devices  map[*Device]bool         // true: up

	closeOnce sync.Once
	closeErr  error
}

// New is [Start] for a test: a failure is fatal and the tailnet is closed when
// the test ends.
func New(tb testing.TB, o Options) *Tailnet {
	tb.Helper()
	t, err := Start(tb.Context(), o)
	if err != nil {
		tb.Fatalf("starting the tailnet: %v", err)
	}
	tb.Cleanup(func() {
		if err := t.Close(); err != nil {
			tb.Errorf("closing the tailnet: %v", err)
		}
	})
	return t
}

// Start starts a tailnet. ctx bounds the start, not the tailnet's life: call
// [Tailnet.Close] in the end. Start also calls [Tailnet.SetupProcess].
func Start(ctx context.Context, o Options) (_ *Tailnet, err error) {
	o.Domain = cmp.Or(o.Domain, "tail1234.ts.net")
	o.ListenHost = cmp.Or(o.ListenHost, "127.0.0.1")
	o.CertificateValidity = cmp.Or(o.CertificateValidity, 90*24*time.Hour)
	logs := &logSwitch{logf: o.Logf}
	o.Logf = logs.print
	if ip, err := netip.ParseAddr(o.ListenHost); err != nil || !ip.Is4() || ip.IsUnspecified() {
		return nil, fmt.Errorf("ListenHost %q is not an IPv4 address by which devices could reach it", o.ListenHost)
	}
	dir, err := os.MkdirTemp("", "tailnet-")
	if err != nil {
		return nil, fmt.Errorf("making a scratch folder: %w", err)
	}
	t := &Tailnet{
		opts: o, logs: logs, dir: dir, keys: newKeyStore(), faults: newFaultTable(),
		lastAddr: netip.AddrFrom4([4]byte{100, 64, 0, 0}), changed: make(chan struct{}), https: !o.NoHTTPS, restrict: o.RestrictNetwork,
		users: map[string]tailcfg.UserID{}, nodes: map[key.NodePublic]*node{}, services: map[tailcfg.ServiceName]*service{},
		c2n: map[string]chan<- []byte{}, devices: map[*Device]bool{},
	}
	t.api = newAPIServer(t)
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if t.relay, err = startRelay(o.ListenHost, o.Logf); err != nil {
		return nil, fmt.Errorf("starting DERP and STUN: %w", err)
	}
	if t.names, err = startDNS(); err != nil {
		return nil, fmt.Errorf("starting DNS: %w", err)
	}
	if !o.NoHTTPS {
		if t.ca, err = startAuthority(ctx, t); err != nil {
			return nil, fmt.Errorf("starting the certificate authority: %w", err)
		}
	}
	addr := net.JoinHostPort(o.ListenHost, strconv.Itoa(o.ListenPort))
	if t.control, err = startControl(t, addr); err != nil {
		return nil, fmt.Errorf("starting the control server: %w", err)
	}
	if err := t.writeTrust(); err != nil {
		return nil, err
	}
	t.SetupProcess()
	return t, nil
}

// Close closes the devices which [Tailnet.Device] made, then the servers, and
// removes what they kept on disk. It may be called more than once.
func (t *Tailnet) Close() error {
	t.closeOnce.Do(func() {
		errs := []error{t.closeDevices()}
		if t.control != nil {
			errs = append(errs, t.control.stop())
		}
		if t.ca != nil {
			errs = append(errs, t.ca.close())
		}
		if t.names != nil {
			errs = append(errs, t.names.close())
		}
		if t.relay != nil {
			errs = append(errs, t.relay.close())
		}
		t.closeErr = errors.Join(append(errs, os.RemoveAll(t.dir))...)
		t.logs.off()
	})
	return t.closeErr
}

// URL is the origin of the control server and of the Tailscale HTTP API
// (under /api/v2), without a slash at its end.
func (t *Tailnet) URL() string { return "http://" + t.control.addr }

// Domain is the MagicDNS suffix: device web is web.<Domain>.
func (t *Tailnet) Domain() string { return t.opts.Domain }

// RootsPEM are the certificates, in PEM, that devices' clients trust. Empty
// without HTTPS.
func (t *Tailnet) RootsPEM() []byte {
	if t.ca == nil {
		return nil
	}
	return t.ca.rootsPEM
}

// Roots is [Tailnet.RootsPEM] as a new pool.
func (t *Tailnet) Roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(t.RootsPEM())
	return pool
}

// change runs f under the lock and tells every connected device's stream to
// look again.
func (t *Tailnet) change(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
	t.bumpLocked()
}

func (t *Tailnet) bumpLocked() {
	t.electLocked()
	close(t.changed)
	t.changed = make(chan struct{})
}

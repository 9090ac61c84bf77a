// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package doctor_test

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/tailhelm/tailhelm/internal/doctor"
	"github.com/tailhelm/tailhelm/internal/kubeconfig"
)

var (
	cluster = kubeconfig.Target{Scheme: "https", Host: host}
	plain   = kubeconfig.Target{Scheme: "http", Host: host}
	short   = kubeconfig.Target{Scheme: "https", Host: "cluster"}

	refused = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
)

// step returns a step of a report.
func step(t *testing.T, r doctor.Report, name string) doctor.Step {
	t.Helper()
	for _, s := range r.Steps {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no step %s in %+v", name, r)
	return doctor.Step{}
}

// TestFailures: a step fails and says why and what to do, those before it are ok, those
// after it are not tried.
func TestFailures(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		target kubeconfig.Target
		broken func(*way)
		step   string
		says   []string // of what was found and what to do
	}{
		"no tailscaled": {cluster, func(w *way) { w.statusErr = errors.New("no socket") }, doctor.StepTailscaled, []string{"no socket", "Start Tailscale"}},
		"logged out": {short, func(w *way) {
			w.status.BackendState, w.status.AuthURL = "NeedsLogin", "https://login.example.com/x"
		}, doctor.StepTailscaled, []string{"NeedsLogin", "Log in: https://login.example.com/x"}},
		"stopped":        {cluster, func(w *way) { w.status.BackendState = "Stopped" }, doctor.StepTailscaled, []string{"Stopped", "tailscale up"}},
		"not approved":   {cluster, func(w *way) { w.status.BackendState = "NeedsMachineAuth" }, doctor.StepTailscaled, []string{"approve this device"}},
		"starting":       {cluster, func(w *way) { w.status.BackendState = "Starting" }, doctor.StepTailscaled, []string{"Starting", "in a moment"}},
		"no preferences": {cluster, func(w *way) { w.prefsErr = errors.New("access denied") }, doctor.StepTailscaled, []string{"access denied"}},
		"nobody":         {cluster, func(w *way) { w.status.User = nil }, doctor.StepTailscaled, []string{"whose device"}},
		"no domain":      {short, func(w *way) { w.status.CurrentTailnet = nil }, doctor.StepTailscaled, []string{"full name"}},

		"unknown": {cluster, func(w *way) { w.removeDevices(); w.lookupErr = errors.New("no such host") }, doctor.StepName, []string{"no device or Service " + host, "spelling", "grant"}},
		"another number": {cluster, func(w *way) {
			w.removeDevices()
			w.lookupErr = errors.New("no such host")
			w.peer("cluster-2")
			w.peer("cluster-x")
			w.peer("cluster-1")
		}, doctor.StepName, []string{"Is it cluster-1.tail1234.ts.net or cluster-2.tail1234.ts.net?"}},
		"a number too much": {kubeconfig.Target{Scheme: "https", Host: "cluster-1.tail1234.ts.net"}, func(w *way) { w.lookupErr = errors.New("no such host") }, doctor.StepName, []string{"Is it " + host + "?"}},
		"elsewhere":         {cluster, func(w *way) { w.removeDevices(); w.addrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} }, doctor.StepName, []string{"at 192.0.2.1", "nothing of the tailnet"}},
		"DNS is off":        {cluster, func(w *way) { w.lookupErr = errors.New("no such host"); w.prefs.CorpDNS = false }, doctor.StepName, []string{"100.64.0.2", "no such host", "--accept-dns=true"}},
		"MagicDNS is off": {cluster, func(w *way) {
			w.lookupErr = errors.New("no such host")
			w.status.CurrentTailnet.MagicDNSEnabled = false
		}, doctor.StepName, []string{"enable MagicDNS"}},
		"another DNS": {cluster, func(w *way) { w.addrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")} }, doctor.StepName, []string{"100.64.0.2", "resolves the name to 192.0.2.1", "tailscale dns status"}},

		"refused":      {cluster, func(w *way) { w.dialErr = refused }, doctor.StepConnect, []string{"port 443", "refused", "Nothing listens", "--http"}},
		"unreachable":  {cluster, func(w *way) { w.dialErr = errors.New("no route") }, doctor.StepConnect, []string{"no route", `"ip": ["tcp:443"]`}},
		"no answer":    {plain, func(w *way) { w.hang = true }, doctor.StepConnect, []string{"no answer on port 80", `"ip": ["tcp:80"]`}},
		"offline":      {cluster, func(w *way) { w.hang = true; w.offline(time.Unix(0, 0)) }, doctor.StepConnect, []string{"offline since 1970-01-01T00:00:00Z", "pods run"}},
		"no routes":    {cluster, func(w *way) { w.asService(true); w.hang = true; w.prefs.RouteAll = false }, doctor.StepConnect, []string{"no answer", "--accept-routes"}},
		"no grant":     {cluster, func(w *way) { w.asService(true); w.hang = true }, doctor.StepConnect, []string{"no answer", "grant"}},
		"no replica":   {cluster, func(w *way) { w.asService(false); w.hang = true }, doctor.StepConnect, []string{"no replica of it is connected", "pods run"}},
		"another name": {cluster, func(w *way) { w.cert.DNSNames = []string{"other.example.com"} }, doctor.StepTLS, []string{"for other.example.com", "Use a name"}},
		"expired":      {cluster, func(w *way) { w.cert.NotAfter = time.Unix(0, 0) }, doctor.StepTLS, []string{"until 1970-01-01T00:00:00Z", "clock"}},
		"staging": {cluster, func(w *way) {
			w.trust = false
			w.cert.Issuer = pkix.Name{CommonName: "(STAGING) Let's Encrypt"}
		}, doctor.StepTLS, []string{"(STAGING)", "useLetsEncryptStagingEnvironment"}},
		"unknown CA":     {cluster, func(w *way) { w.trust = false }, doctor.StepTLS, []string{"CN=CA", "--certificate-authority"}},
		"CA of a nobody": {cluster, func(w *way) { w.config.Clusters[host].CertificateAuthority = "/nowhere"; w.trust = false }, doctor.StepTLS, []string{"/nowhere", "context mine"}},
		"no TLS":         {cluster, func(w *way) { w.plain = true }, doctor.StepTLS, []string{"does not speak TLS", "--http"}},

		"the proxy refuses":  {cluster, func(w *way) { w.handler = refuse("", 401, "The node key of this device has expired.") }, doctor.StepVersion, []string{"the proxy answers 401: The node key of this device has expired."}},
		"API server is away": {cluster, func(w *way) { w.handler = refuse("", 503, "cannot be reached from the proxy") }, doctor.StepVersion, []string{"the proxy answers 503: cannot be reached"}},
		"no Kubernetes": {cluster, func(w *way) {
			w.handler = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }
		}, doctor.StepVersion, []string{"no answer of Kubernetes"}},
		"https alone": {plain, func(w *way) {
			w.plain = true
			w.handler = http.RedirectHandler("https://"+host, http.StatusPermanentRedirect).ServeHTTP
		}, doctor.StepVersion, []string{"Leave out --http"}},
		"broken off":        {cluster, func(w *way) { w.handler = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) } }, doctor.StepVersion, []string{"no answer to GET /version", "log"}},
		"no identity":       {cluster, func(w *way) { w.onReview(refuse("", 403, "The grant is malformed.")) }, doctor.StepIdentity, []string{"the proxy answers 403: The grant is malformed."}},
		"an old API server": {cluster, func(w *way) { w.onReview(refuse("1", 404, "not found")) }, doctor.StepIdentity, []string{"the API server answers 404: not found"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWay()
			tc.broken(w)
			timeout := time.Minute
			if w.hang {
				timeout = 30 * time.Millisecond
			}
			report := w.run(t, tc.target, timeout)
			if report.OK {
				t.Error("the report is ok")
			}
			want := doctor.OK
			for _, s := range report.Steps[:6] {
				switch {
				case s.Name == tc.step:
					want = doctor.NotTried
					for _, says := range tc.says {
						if s.Status != doctor.Failed || !strings.Contains(s.Found+"\n"+s.Advice, says) {
							t.Errorf("%+v, want it failed with %q", s, says)
						}
					}
				case s.Status != want && (s.Name != doctor.StepTLS || tc.target.Scheme != "http"):
					t.Errorf("%+v, want %s", s, want)
				}
			}
		})
	}
}

// offline makes the devices be gone since a time.
func (w *way) offline(since time.Time) {
	for _, p := range w.status.Peer {
		p.Online, p.LastSeen = false, since
	}
}

// onReview answers a SelfSubjectReview otherwise.
func (w *way) onReview(review http.HandlerFunc) {
	other := w.handler
	w.handler = func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			review(w, r)
			return
		}
		other(w, r)
	}
}

// TestWell: no step fails, and each says what there is.
func TestWell(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		target kubeconfig.Target
		change func(*way)
		step   string
		status doctor.Status
		says   []string
	}{
		"tailscaled":         {cluster, func(*way) {}, doctor.StepTailscaled, doctor.OK, []string{"laptop.tail1234.ts.net", "alice@example.com"}},
		"short name":         {short, func(*way) {}, doctor.StepName, doctor.OK, []string{host, "the device", "100.64.0.2"}},
		"Service":            {cluster, func(w *way) { w.asService(true) }, doctor.StepName, doctor.OK, []string{"the Service " + host, "100.100.0.1"}},
		"said to be offline": {cluster, func(w *way) { w.offline(time.Time{}) }, doctor.StepName, doctor.OK, []string{"; it is offline"}},
		"another domain": {kubeconfig.Target{Scheme: "https", Host: "kube.example.com"}, func(w *way) {
			w.cert.DNSNames = []string{"kube.example.com"}
			w.config.Clusters[host].Server = "https://kube.example.com"
		}, doctor.StepName, doctor.OK, []string{"kube.example.com is the device " + host}},
		"certificate": {cluster, func(*way) {}, doctor.StepTLS, doctor.OK, []string{"for " + host, "by CN=CA", "until 20"}},
		"server name in the kubeconfig": {cluster, func(w *way) {
			w.cert.DNSNames = []string{"kube.example.com"}
			w.config.Clusters[host].TLSServerName = "kube.example.com"
		}, doctor.StepVersion, doctor.OK, []string{"v1.99.0"}},
		"plain HTTP": {plain, func(w *way) { w.plain = true }, doctor.StepTLS, doctor.NotTried, []string{"plain HTTP"}},
		"version":    {cluster, func(*way) {}, doctor.StepVersion, doctor.OK, []string{"Kubernetes v1.99.0"}},
		"no right to ask for the version": {cluster, func(w *way) {
			who := w.handler
			w.handler = refuse("1", 403, "User alice cannot get path /version")
			w.onReview(who)
		}, doctor.StepVersion, doctor.OK, []string{"the API server answers 403: User alice"}},
		"identity":    {cluster, func(*way) {}, doctor.StepIdentity, doctor.OK, []string{"you are alice@example.com, in the groups readers"}},
		"no groups":   {cluster, func(w *way) { w.handler = apiServer("alice@example.com", "system:authenticated") }, doctor.StepIdentity, doctor.OK, []string{"in no group of a grant", "tailscale.com/cap/kubernetes"}},
		"noauth":      {cluster, func(w *way) { w.asNoAuth(refuse("1", 403, `User "system:anonymous" cannot create`)) }, doctor.StepIdentity, doctor.NotTried, []string{"mode noauth", "kubectl auth whoami"}},
		"noauth, 401": {cluster, func(w *way) { w.asNoAuth(refuse("1", 401, "Unauthorized")) }, doctor.StepIdentity, doctor.NotTried, []string{"mode noauth"}},

		"current context": {cluster, func(*way) {}, doctor.StepKubeconfig, doctor.OK, []string{`the current context "mine"`}},
		"another context": {cluster, func(w *way) { w.config.CurrentContext = "" }, doctor.StepKubeconfig, doctor.OK, []string{`"mine"`, "use-context mine"}},
		"no context":      {plain, func(w *way) { w.plain = true }, doctor.StepKubeconfig, doctor.NotTried, []string{"no context", "tailhelm kubeconfig " + host + " --http"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWay()
			tc.change(w)
			report := w.run(t, tc.target, time.Minute)
			if !report.OK || report.Server != tc.target.Complete("tail1234.ts.net").URL() {
				t.Errorf("the report is not ok: %+v", report)
			}
			s := step(t, report, tc.step)
			for _, says := range tc.says {
				if s.Status != tc.status || !strings.Contains(s.Found+"\n"+s.Advice, says) {
					t.Errorf("%+v, want %s with %q", s, tc.status, says)
				}
			}
		})
	}
}

// asNoAuth answers all with what an API server says to callers without credentials. The
// context has some of its own.
func (w *way) asNoAuth(answer http.HandlerFunc) {
	w.handler = answer
	w.config.AuthInfos["tailscale-auth"].Token = "mine"
}

// TestKubeconfigFails: what is wrong with the kubeconfig fails whatever came before.
func TestKubeconfigFails(t *testing.T) {
	t.Parallel()
	w := newWay()
	w.asNoAuth(refuse("1", 401, "Unauthorized"))
	w.config.AuthInfos["tailscale-auth"].Token = "unused"
	report := w.run(t, cluster, time.Minute)
	if s := step(t, report, doctor.StepKubeconfig); report.OK || s.Status != doctor.Failed || !strings.Contains(s.Advice, host+" --mode=noauth") {
		t.Errorf("the unused token with noauth: %+v", report)
	}
	w = newWay()
	w.config, w.trust, w.configErr, w.statusErr = nil, false, errors.New("not YAML"), errors.New("no socket")
	if s := step(t, w.run(t, cluster, time.Minute), doctor.StepKubeconfig); s.Status != doctor.Failed || !strings.Contains(s.Found, "not YAML") {
		t.Errorf("a kubeconfig that cannot be read: %+v", s)
	}
	w = newWay()
	w.statusErr = errors.New("no socket")
	if s := step(t, w.run(t, short, time.Minute), doctor.StepKubeconfig); s.Status != doctor.NotTried || s.Found != "" {
		t.Errorf("a name that is not complete: %+v", s)
	}
}

// TestEnds: a step gets a third of the time, and the run ends when its caller has had enough.
func TestEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	d := doctor.Doctor{
		Tailscaled: newWay(), Timeout: time.Hour,
		Lookup: func(ctx context.Context, _ string) ([]netip.Addr, error) {
			if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > 20*time.Minute {
				t.Errorf("a step may last until %v, want a third of the run's time", deadline)
			}
			cancel()
			<-ctx.Done()
			return nil, ctx.Err()
		},
		Kubeconfig: func() (*clientcmdapi.Config, error) { return clientcmdapi.NewConfig(), nil },
	}
	if s := step(t, d.Run(ctx, cluster), doctor.StepName); s.Status != doctor.Failed || !strings.Contains(s.Found, "context canceled") {
		t.Errorf("%+v", s)
	}
}

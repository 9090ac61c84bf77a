// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package doctor_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/views"

	"github.com/tailhelm/tailhelm/internal/doctor"
	"github.com/tailhelm/tailhelm/internal/kubeconfig"
)

const host = "cluster.tail1234.ts.net"

var (
	deviceAddr  = netip.MustParseAddr("100.64.0.2")
	serviceAddr = netip.MustParseAddr("100.100.0.1")
)

// way is all that lies between a device and an API server. Tests break it.
type way struct {
	status    *ipnstate.Status
	statusErr error
	prefs     *ipn.Prefs
	prefsErr  error

	addrs     []netip.Addr
	lookupErr error
	dialErr   error
	hang      bool // nothing answers a connection
	plain     bool // the proxy speaks no TLS
	cert      x509.Certificate
	handler   http.HandlerFunc

	config    *clientcmdapi.Config
	configErr error
	trust     bool // the kubeconfig has the CA
}

// newWay is a way on which all is well.
func newWay() *way {
	w := &way{
		status: &ipnstate.Status{
			BackendState:   "Running",
			CurrentTailnet: &ipnstate.TailnetStatus{MagicDNSSuffix: "tail1234.ts.net", MagicDNSEnabled: true},
			Self:           &ipnstate.PeerStatus{DNSName: "laptop.tail1234.ts.net.", UserID: 7},
			User:           map[tailcfg.UserID]tailcfg.UserProfile{7: {LoginName: "alice@example.com"}},
			Peer:           map[key.NodePublic]*ipnstate.PeerStatus{},
		},
		prefs:   &ipn.Prefs{CorpDNS: true, RouteAll: true},
		addrs:   []netip.Addr{deviceAddr},
		cert:    x509.Certificate{DNSNames: []string{host}, NotAfter: time.Now().Add(time.Hour)},
		handler: apiServer("alice@example.com", "readers", "system:authenticated"),
		config:  clientcmdapi.NewConfig(),
		trust:   true,
	}
	w.peer("cluster", deviceAddr).Online = true
	w.config.Clusters[host] = &clientcmdapi.Cluster{Server: "https://" + host}
	w.config.AuthInfos["tailscale-auth"] = &clientcmdapi.AuthInfo{Token: "unused"}
	w.config.Contexts["mine"] = &clientcmdapi.Context{Cluster: host, AuthInfo: "tailscale-auth"}
	w.config.CurrentContext = "mine"
	return w
}

// peer adds a device.
func (w *way) peer(name string, addrs ...netip.Addr) *ipnstate.PeerStatus {
	p := &ipnstate.PeerStatus{DNSName: name + ".tail1234.ts.net.", TailscaleIPs: addrs}
	w.status.Peer[key.NewNode().Public()] = p
	return p
}

// removeDevices leaves no peer.
func (w *way) removeDevices() { w.status.Peer = map[key.NodePublic]*ipnstate.PeerStatus{} }

// asService makes the name one of a Service with a replica that is connected, or none.
func (w *way) asService(connected bool) {
	w.removeDevices()
	w.status.ExtraRecords = []tailcfg.DNSRecord{{Name: host + ".", Value: serviceAddr.String()}, {Name: host, Type: "TXT", Value: "text"}}
	w.addrs = []netip.Addr{serviceAddr}
	if connected {
		allowed := views.SliceOf([]netip.Prefix{netip.PrefixFrom(serviceAddr, 32)})
		w.peer("cluster-0", deviceAddr).AllowedIPs = &allowed
	}
}

// Status and GetPrefs are tailscaled's.
func (w *way) Status(context.Context) (*ipnstate.Status, error) { return w.status, w.statusErr }
func (w *way) GetPrefs(context.Context) (*ipn.Prefs, error)     { return w.prefs, w.prefsErr }

// apiServer answers as a proxy and an API server that take the caller for a user.
func apiServer(user string, groups ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			refuse("", http.StatusTeapot, "there are credentials")(w, r)
			return
		}
		w.Header().Set("Audit-Id", "1")
		switch r.Method + " " + r.URL.Path {
		case "GET /version":
			_, _ = w.Write([]byte(`{"gitVersion": "v1.99.0"}`))
		case "POST /apis/authentication.k8s.io/v1/selfsubjectreviews":
			var review authenticationv1.SelfSubjectReview
			if json.NewDecoder(r.Body).Decode(&review) != nil || review.Kind != "SelfSubjectReview" {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			review.Status.UserInfo = authenticationv1.UserInfo{Username: user, Groups: groups}
			w.WriteHeader(http.StatusCreated)
			_ = json.NewEncoder(w).Encode(review)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}
}

// refuse answers with a Status: that of the API server with an audit ID, otherwise the
// proxy's.
func refuse(auditID string, code int, message string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if auditID != "" {
			w.Header().Set("Audit-Id", auditID)
		} else { // as apiproxy does
			w.Header().Set("Audit-Id", "2")
			w.Header().Set("Tailhelm-Refused", "unknown_peer")
		}
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Message: message})
	}
}

// run starts what answers, and runs the doctor.
func (w *way) run(t *testing.T, target kubeconfig.Target, timeout time.Duration) doctor.Report {
	t.Helper()
	server := httptest.NewUnstartedServer(w.handler)
	if w.plain {
		server.Start()
	} else {
		pair, ca := certificate(t, w.cert)
		server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
		if w.trust {
			for _, cluster := range w.config.Clusters {
				cluster.CertificateAuthorityData = ca
			}
		}
		server.StartTLS()
	}
	t.Cleanup(server.Close)
	d := doctor.Doctor{
		Tailscaled: w, Timeout: timeout,
		Lookup: func(context.Context, string) ([]netip.Addr, error) {
			if w.lookupErr != nil {
				return nil, w.lookupErr
			}
			return w.addrs, nil
		},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if w.hang {
				<-ctx.Done()
				return nil, &net.OpError{Op: "dial", Net: network, Err: ctx.Err()}
			}
			if want := net.JoinHostPort(target.Complete("tail1234.ts.net").Host, target.Port()); address != want {
				t.Errorf("dialed %s, want %s", address, want)
			}
			if w.dialErr != nil {
				return nil, w.dialErr
			}
			return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
		},
		Kubeconfig: func() (*clientcmdapi.Config, error) { return w.config, w.configErr },
	}
	return d.Run(t.Context(), target)
}

// certificate issues a certificate by a new CA, and returns the CA's in PEM.
func certificate(t *testing.T, template x509.Certificate) (pair tls.Certificate, ca []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issuer := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if template.Issuer.CommonName != "" {
		issuer.Subject = template.Issuer
	}
	caDER, err := x509.CreateCertificate(rand.Reader, issuer, issuer, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(2)
	der, err := x509.CreateCertificate(rand.Reader, &template, issuer, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/rest"
)

// connect opens a TCP connection.
func (r *run) connect(ctx context.Context) Step {
	address := net.JoinHostPort(r.target.Host, r.target.Port())
	conn, err := r.Dial(ctx, "tcp", address)
	if err == nil {
		r.conn = conn
		return ok("connected to port " + r.target.Port())
	}
	timeout := errors.Is(err, context.DeadlineExceeded) || isTimeout(err)
	found := fmt.Sprintf("no connection to port %s: %v", r.target.Port(), err)
	if timeout {
		found = fmt.Sprintf("no answer on port %s within %v", r.target.Port(), r.Timeout/3)
	}
	if r.place.absent != "" {
		found += "; " + r.place.absent
	}
	switch {
	case timeout && r.place.absent == "" && r.place.service && !r.prefs.RouteAll:
		return fail(found, "This device accepts no routes, and the address of a Service is one: sudo tailscale set --accept-routes.")
	case r.place.absent != "":
		return fail(found, "Ask an administrator whether the proxy's pods run and are ready.")
	case errors.Is(err, syscall.ECONNREFUSED):
		return fail(found, fmt.Sprintf("Nothing listens there: is %s the proxy, and ready? One without TLS (tls.source \"off\") answers with --http alone.", r.place.name))
	}
	return fail(found, fmt.Sprintf("Ask an administrator for a grant with \"ip\": [\"tcp:%s\"] from you to the proxy, and whether the proxy runs.", r.target.Port()))
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// handshake verifies the certificate as kubectl would. Here, insecure-skip-tls-verify does not
// count.
func (r *run) handshake(ctx context.Context) Step {
	if r.target.Scheme == "http" {
		return Step{Status: NotTried, Found: "plain HTTP, inside the encryption of the tailnet"}
	}
	config, err := r.tlsConfig()
	if err != nil {
		return fail(fmt.Sprintf("the CA in the kubeconfig cannot be used: %v", err), "Correct the cluster of the context "+r.target.Context(r.config)+".")
	}
	conn := tls.Client(r.conn, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return r.tlsFailure(err)
	}
	r.conn = conn
	return ok("the certificate is " + describe(conn.ConnectionState().PeerCertificates[0]))
}

// tlsConfig trusts what kubectl trusts: the CA that the kubeconfig has for the proxy, or
// else those of the system.
func (r *run) tlsConfig() (*tls.Config, error) {
	var trust rest.TLSClientConfig
	if context := r.target.Context(r.config); context != "" {
		cluster := r.config.Clusters[r.config.Contexts[context].Cluster]
		trust = rest.TLSClientConfig{CAFile: cluster.CertificateAuthority, CAData: cluster.CertificateAuthorityData, ServerName: cluster.TLSServerName}
	}
	config, err := rest.TLSConfigFor(&rest.Config{TLSClientConfig: trust})
	if err != nil {
		return nil, err
	}
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if config.ServerName == "" {
		config.ServerName = r.target.Host
	}
	return config, nil
}

// tlsFailure says what was wrong with the other side, or its certificate.
func (r *run) tlsFailure(err error) Step {
	var (
		verification *tls.CertificateVerificationError
		other        x509.HostnameError
		invalid      x509.CertificateInvalidError
		noTLS        tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &noTLS):
		return fail("the other side does not speak TLS", fmt.Sprintf("Is %s the proxy? One without TLS (tls.source \"off\") answers with --http.", r.target.Host))
	case !errors.As(err, &verification) || len(verification.UnverifiedCertificates) == 0:
		return fail(fmt.Sprintf("no TLS connection: %v", err), "Ask an administrator for the proxy's readiness (/readyz?verbose): it may have no certificate yet.")
	}
	cert := verification.UnverifiedCertificates[0]
	found := fmt.Sprintf("%v; the certificate is %s", verification.Err, describe(cert))
	switch {
	case errors.As(err, &other):
		return fail(found, "Use a name that the certificate has, or ask an administrator for one with this name.")
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fail(found, "See that this device's clock is right. If it is, ask an administrator for the proxy's readiness (/readyz?verbose): it says why there is no new certificate.")
	case strings.Contains(cert.Issuer.String(), "(STAGING)"):
		return fail(found, "It comes from the staging environment of Let's Encrypt, for tests. Ask an administrator to switch useLetsEncryptStagingEnvironment off.")
	}
	return fail(found, fmt.Sprintf("If it is of a CA of yours, say so in the kubeconfig: kubectl config set-cluster %s --certificate-authority=ca.crt --embed-certs.", r.target.Host))
}

// describe says whom a certificate is for, who issued it and until when.
func describe(cert *x509.Certificate) string {
	names := "no names"
	if len(cert.DNSNames) > 0 {
		names = strings.Join(cert.DNSNames, ", ")
	}
	return fmt.Sprintf("for %s, by %s, until %s", names, cert.Issuer, cert.NotAfter.UTC().Format(time.RFC3339))
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"context"

	"github.com/tailhelm/tailhelm/test/binary"
	"github.com/tailhelm/tailhelm/test/kubernetes/internal/process"
)

// startEtcd starts etcd on free ports and waits until it is healthy. It speaks TLS
// with client certificates: two clusters that mix up their ports must not share data.
func (c *Cluster) startEtcd(ctx context.Context) error {
	program, err := binary.Build(ctx, etcd)
	if err != nil {
		return err
	}
	cert, err := c.ca.server("etcd")
	if err != nil {
		return err
	}
	client, err := c.ca.httpClient(cert)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	return retryPorts(ctx, func(ctx context.Context) error {
		port, err := freePort(ctx)
		if err != nil {
			return err
		}
		peerPort, err := freePort(ctx)
		if err != nil {
			return err
		}
		c.etcdURL = "https://" + address(port)
		log, err := freshLog(c.path("etcd.log"))
		if err != nil {
			return err
		}
		p, err := process.Serve(ctx, c.path("home"), log, program, c.etcdFlags(cert, "https://"+address(peerPort))...)
		if err != nil {
			return err
		}
		c.etcd = p
		return waitReady(ctx, p, log, c.etcdURL+"/health", client)
	})
}

func (c *Cluster) etcdFlags(cert pair, peerURL string) []string {
	return []string{
		"--name=default",
		"--data-dir=" + c.path("etcd"),
		"--listen-client-urls=" + c.etcdURL,
		"--advertise-client-urls=" + c.etcdURL,
		"--listen-peer-urls=" + peerURL,
		"--initial-advertise-peer-urls=" + peerURL,
		"--initial-cluster=default=" + peerURL,
		"--client-cert-auth", "--peer-client-cert-auth",
		"--trusted-ca-file=" + c.ca.file(), "--peer-trusted-ca-file=" + c.ca.file(),
		"--cert-file=" + cert.certFile, "--peer-cert-file=" + cert.certFile,
		"--key-file=" + cert.keyFile, "--peer-key-file=" + cert.keyFile,
		// The data has to survive the API server, not the machine.
		"--unsafe-no-fsync",
	}
}

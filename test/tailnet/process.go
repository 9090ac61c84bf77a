// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"path/filepath"

	"tailscale.com/envknob"
	"tailscale.com/net/netns"
)

// environment keeps devices of a process inside this tailnet: certificates
// from its authority, no logs to Tailscale, no packets to the local router.
func (t *Tailnet) environment() map[string]string {
	return map[string]string{
		"TS_DEBUG_ACME_DIRECTORY_URL": t.ACMEDirectory(),
		"TS_NO_LOGS_NO_SUPPORT":       "true",
		"TS_DISABLE_PORTMAPPER":       "true",
	}
}

// ACMEDirectory is the URL of the certificate authority's directory. Without
// HTTPS it is one that answers 404: a device would else turn to Let's Encrypt.
func (t *Tailnet) ACMEDirectory() string {
	if t.ca == nil {
		return t.URL() + "/acme/dir"
	}
	return t.ca.directory()
}

// SetupProcess makes tsnet nodes of this process use the tailnet's certificate
// authority and stay on this machine. [Start] calls it. The settings are the
// process's: of several tailnets at a time, only the one set up last issues
// certificates to nodes of this process. It may be called again to change that.
func (t *Tailnet) SetupProcess() {
	netns.SetEnabled(false) // no need to escape from a VPN's routes on loopback
	envknob.SetNoLogsNoSupport()
	for k, v := range t.environment() {
		envknob.Setenv(k, v)
	}
}

// Environ is for other processes whose nodes join this tailnet, as "NAME=value"
// to be added to theirs. SSL_CERT_FILE makes a process trust the authority's
// directory and the tailnet's certificates (as machines trust those of Let's
// Encrypt), besides what the system trusts.
func (t *Tailnet) Environ() []string {
	env := []string{"SSL_CERT_FILE=" + t.trustFile()}
	for k, v := range t.environment() {
		env = append(env, k+"="+v)
	}
	return env
}

func (t *Tailnet) trustFile() string { return filepath.Join(t.dir, "trust.pem") }

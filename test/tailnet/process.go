// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"path/filepath"
	"sync"

	"tailscale.com/envknob"
	"tailscale.com/net/netns"
)

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
	setupOnce()
	envknob.Setenv(directoryVariable, t.ACMEDirectory())
}

// setupOnce sets what is the same for every tailnet, once, because running
// nodes read it.
var setupOnce = sync.OnceFunc(func() {
	netns.SetEnabled(false) // no need to escape from a VPN's routes on loopback
	for k, v := range isolation {
		envknob.Setenv(k, v)
	}
})

const directoryVariable = "TS_DEBUG_ACME_DIRECTORY_URL"

// isolation keeps nodes from sending logs to Tailscale and from talking to
// the local router.
var isolation = map[string]string{
	"TS_NO_LOGS_NO_SUPPORT": "true",
	"TS_DISABLE_PORTMAPPER": "true",
}

// Environ is for other processes whose nodes join this tailnet, as "NAME=value"
// to be added to theirs. SSL_CERT_FILE makes a process trust the authority's
// directory and the tailnet's certificates (as machines trust those of Let's
// Encrypt), besides what the system trusts.
func (t *Tailnet) Environ() []string {
	env := []string{"SSL_CERT_FILE=" + t.trustFile(), directoryVariable + "=" + t.ACMEDirectory()}
	for k, v := range isolation {
		env = append(env, k+"="+v)
	}
	return env
}

func (t *Tailnet) trustFile() string { return filepath.Join(t.dir, "trust.pem") }

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// rotationInterval is how often the files of the API server's CA and of the client
// certificate are looked at: client-go's own interval.
const rotationInterval = 5 * time.Minute

// rotatingTransport is a transport to the API server that follows its CA file and its
// client certificate's files when they are replaced, as client-go's transports do. What
// goes on over the connections of before ends there; further requests get new ones.
type rotatingTransport struct {
	config *rest.Config
	leg    leg
	// files are those of config that are read again, interval how long after the last time.
	files    []string
	interval time.Duration
	log      *slog.Logger

	mu      sync.Mutex // guards what follows
	current *http.Transport
	// contents are those of files which current has, or later ones.
	contents [][]byte
	checked  time.Time
}

// newRotatingTransport returns a transport for one leg to the API server of config. It errs
// when the TLS settings of config cannot be used.
func newRotatingTransport(config *rest.Config, way leg, log *slog.Logger) (*rotatingTransport, error) {
	t := &rotatingTransport{config: config, leg: way, files: rotatedFiles(config), interval: rotationInterval, log: log, checked: time.Now()}
	var err error
	if t.contents, err = readAll(t.files); err != nil {
		return nil, err
	}
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	t.current = newTransport(config, tlsConfig, way)
	return t, nil
}

// rotatedFiles returns the files of config that may be replaced. Data in config takes
// precedence over a file, as in client-go.
func rotatedFiles(config *rest.Config) []string {
	var files []string
	if config.CAFile != "" && len(config.CAData) == 0 {
		files = append(files, config.CAFile)
	}
	if config.CertFile != "" && len(config.CertData) == 0 && config.KeyFile != "" && len(config.KeyData) == 0 {
		files = append(files, config.CertFile, config.KeyFile)
	}
	return files
}

// readAll returns the contents of files.
func readAll(files []string) ([][]byte, error) {
	contents := make([][]byte, 0, len(files))
	for _, file := range files {
		content, err := os.ReadFile(file) //nolint:gosec // the path is the operator's configuration
		if err != nil {
			return nil, err
		}
		contents = append(contents, content)
	}
	return contents, nil
}

// RoundTrip sends r over a connection that the files allow, as of the last look at them.
func (t *rotatingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	return t.transport().RoundTrip(r)
}

// CloseIdleConnections closes the connections over which nothing goes on.
func (t *rotatingTransport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.current.CloseIdleConnections()
}

// transport returns the current transport, after another look at the files if it is time
// for one. Files that cannot be used change nothing, and are logged.
func (t *rotatingTransport) transport() *http.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); len(t.files) > 0 && now.Sub(t.checked) >= t.interval {
		t.checked = now
		if err := t.rotateLocked(); err != nil {
			t.log.Error("TLS to the Kubernetes API server stays as it is: its files have changed and cannot be used", "files", t.files, "error", err)
		}
	}
	return t.current
}

// rotateLocked replaces the transport if the files were.
func (t *rotatingTransport) rotateLocked() error {
	contents, err := readAll(t.files)
	if err != nil {
		return err
	}
	same := true
	for i, content := range contents {
		if len(content) == 0 {
			return fmt.Errorf("%s is empty", t.files[i])
		}
		same = same && bytes.Equal(content, t.contents[i])
	}
	if same {
		return nil
	}
	tlsConfig, err := rest.TLSConfigFor(t.config)
	if err != nil {
		return err
	}
	if tlsConfig.GetClientCertificate != nil { // reads its files in handshakes only
		if _, err := tlsConfig.GetClientCertificate(new(tls.CertificateRequestInfo)); err != nil {
			return err
		}
	}
	t.current.CloseIdleConnections()
	t.current, t.contents = newTransport(t.config, tlsConfig, t.leg), contents
	t.log.Info("the files for TLS to the Kubernetes API server have changed: further connections use them", "files", t.files)
	return nil
}

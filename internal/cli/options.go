// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/tailhelm/tailhelm/internal/apiproxy"
	"github.com/tailhelm/tailhelm/internal/tailnet"
)

// Sources of TLS.
const (
	tlsACME = "acme" // the tailnet's certificates
	tlsFile = "file" // files
	tlsOff  = "off"  // plain HTTP inside WireGuard
)

// serveOptions are the flags that the commands operator and proxy share.
type serveOptions struct {
	tls             string
	tlsCertFile     string
	tlsKeyFile      string
	metricsAddress  string
	drainTimeout    time.Duration
	peerConnections int
	authKeyFile     string
	stateDir        string
	logLevel        string
	accessLog       string
	fewerGroups     bool
}

// add defines the flags.
func (o *serveOptions) add(flags *pflag.FlagSet, metricsAddress string) {
	flags.StringVar(&o.tls, "tls", tlsACME, "source of TLS on the tailnet: acme (the tailnet's certificates), file, or off (plain HTTP inside WireGuard)")
	flags.StringVar(&o.tlsCertFile, "tls-cert-file", "", "with --tls file: the certificate chain (PEM), reloaded when it changes")
	flags.StringVar(&o.tlsKeyFile, "tls-key-file", "", "with --tls file: the key of the certificate (PEM)")
	flags.StringVar(&o.metricsAddress, "metrics-address", metricsAddress, "address for /livez, /readyz and /metrics; never on the tailnet")
	flags.DurationVar(&o.drainTimeout, "drain-timeout", time.Minute, "how long open requests and streams may go on after SIGTERM")
	flags.IntVar(&o.peerConnections, "max-connections-per-peer", apiproxy.DefaultPeerConnections, "how many connections one device may have open")
	flags.StringVar(&o.accessLog, "access-log", string(apiproxy.AccessLogAll), "requests that get a line in the log, whatever its level: all, mutating, or none; sessions and refusals always get one")
	flags.BoolVar(&o.fewerGroups, "allow-fewer-groups", false, "let callers ask to be impersonated in some of their groups alone (kubectl --as, --as-group); what forbids something to members of a group does not see the others then")
	flags.StringVar(&o.authKeyFile, "auth-key-file", "", "file with an auth key for the tailnet (or TS_AUTHKEY)")
	flags.StringVar(&o.stateDir, "state-dir", "", "folder for the device's files")
}

// validate checks the flags, and no more than that.
func (o *serveOptions) validate() error {
	switch o.tls {
	case tlsACME, tlsOff:
		if o.tlsCertFile != "" {
			return badSetting("--tls-cert-file", o.tlsCertFile, fmt.Sprintf("goes with --tls file, but --tls is %q", o.tls))
		}
		if o.tlsKeyFile != "" {
			return badSetting("--tls-key-file", o.tlsKeyFile, fmt.Sprintf("goes with --tls file, but --tls is %q", o.tls))
		}
	case tlsFile:
		if o.tlsCertFile == "" || o.tlsKeyFile == "" {
			return badSetting("--tls", o.tls, "needs --tls-cert-file and --tls-key-file")
		}
	default:
		return badSetting("--tls", o.tls, "choose acme, file or off")
	}
	if _, _, err := net.SplitHostPort(o.metricsAddress); err != nil {
		return badSetting("--metrics-address", o.metricsAddress, "give host:port, or :port for all addresses")
	}
	if o.drainTimeout <= 0 {
		return badSetting("--drain-timeout", o.drainTimeout.String(), "give a duration above 0, for example 60s")
	}
	if o.peerConnections <= 0 {
		return badSetting("--max-connections-per-peer", fmt.Sprint(o.peerConnections), "give a number above 0")
	}
	switch apiproxy.AccessLog(o.accessLog) {
	case "", apiproxy.AccessLogAll, apiproxy.AccessLogMutating, apiproxy.AccessLogNone:
		return nil
	}
	return badSetting("--access-log", o.accessLog, "choose all, mutating or none")
}

// certificates returns the source of TLS for node, or nil for none.
func (o *serveOptions) certificates(node *tailnet.Node) (certificates, error) {
	switch o.tls {
	case tlsOff:
		return nil, nil //nolint:nilnil // no TLS is a choice
	case tlsFile:
		files, err := tailnet.NewCertificateFiles(o.tlsCertFile, o.tlsKeyFile)
		if err != nil {
			return nil, badSetting("--tls-cert-file", o.tlsCertFile, err.Error())
		}
		return files, nil
	}
	return node.Certificates(), nil
}

// fixedKey returns the auth key that was given by file (--auth-key-file) or environment,
// or nil.
func fixedKey(env environment, file string) (tailnet.AuthKeys, error) {
	switch value := env("TS_AUTHKEY"); {
	case file != "" && value != "":
		return nil, badSetting("--auth-key-file", file, "TS_AUTHKEY is set, too: give one of them")
	case file != "":
		if _, err := tailnet.AuthKeyFile(file).AuthKey(context.Background()); err != nil {
			return nil, badSetting("--auth-key-file", file, err.Error())
		}
		return tailnet.AuthKeyFile(file), nil
	case value != "":
		return tailnet.FixedAuthKey(value), nil
	}
	return nil, nil //nolint:nilnil // none was given
}

// validHostname checks the form of a device's name.
func validHostname(setting, value string) error {
	if len(validation.IsDNS1123Label(value)) > 0 {
		return badSetting(setting, value, "give a DNS label: up to 63 of a-z, 0-9 and '-', not at the ends")
	}
	return nil
}

// loginServer returns the address of a control server without a trailing slash.
func loginServer(setting, value string) (string, error) {
	if value == "" {
		return "", nil
	}
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || (u.Path != "" && u.Path != "/") || u.RawQuery != "" {
		return "", badSetting(setting, value, "give the address of the control server, for example https://headscale.example.com")
	}
	return strings.TrimSuffix(value, "/"), nil
}

// newLogger returns a JSON logger for a level. "dev" is the official operator's word for debug.
func newLogger(w io.Writer, setting, level string) (*slog.Logger, error) {
	levels := map[string]slog.Level{"": slog.LevelInfo, "info": slog.LevelInfo, "debug": slog.LevelDebug, "dev": slog.LevelDebug, "warn": slog.LevelWarn, "error": slog.LevelError}
	l, ok := levels[level]
	if !ok {
		return nil, badSetting(setting, level, "choose debug (or dev), info, warn or error")
	}
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: l})), nil
}

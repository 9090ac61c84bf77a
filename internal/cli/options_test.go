// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestServeOptions(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string // "" is right
	}{
		"none":                       {nil, ""},
		"acme":                       {[]string{"--tls=acme"}, ""},
		"off":                        {[]string{"--tls=off"}, ""},
		"file":                       {[]string{"--tls=file", "--tls-cert-file=c", "--tls-key-file=k"}, ""},
		"file without files":         {[]string{"--tls=file"}, `--tls="file": needs --tls-cert-file and --tls-key-file`},
		"file without a key":         {[]string{"--tls=file", "--tls-cert-file=c"}, `--tls="file": needs`},
		"file without a certificate": {[]string{"--tls=file", "--tls-key-file=k"}, `--tls="file": needs`},
		"a certificate and acme":     {[]string{"--tls-cert-file=c"}, `--tls-cert-file="c": goes with --tls file, but --tls is "acme"`},
		"a key and off":              {[]string{"--tls=off", "--tls-key-file=k"}, `--tls-key-file="k": goes with --tls file, but --tls is "off"`},
		"another source":             {[]string{"--tls=on"}, `--tls="on": choose acme, file or off`},
		"no source":                  {[]string{"--tls="}, `--tls="": choose acme, file or off`},
		"all addresses":              {[]string{"--metrics-address=:1"}, ""},
		"no port":                    {[]string{"--metrics-address=127.0.0.1"}, `--metrics-address="127.0.0.1": give host:port`},
		"no address":                 {[]string{"--metrics-address="}, `--metrics-address="": give host:port`},
		"no time":                    {[]string{"--drain-timeout=0s"}, `--drain-timeout="0s": give a duration above 0`},
		"negative time":              {[]string{"--drain-timeout=-1s"}, `--drain-timeout="-1s": give a duration above 0`},
		"an access log":              {[]string{"--access-log=mutating"}, ""},
		"another access log":         {[]string{"--access-log=some"}, `--access-log="some": choose all, mutating or none`},
		"no connections":             {[]string{"--max-connections-per-peer=0"}, `--max-connections-per-peer="0": give a number above 0`},
	} {
		t.Run(name, func(t *testing.T) {
			var o serveOptions
			flags := pflag.NewFlagSet("", pflag.ContinueOnError)
			o.add(flags, ":9002")
			if err := flags.Parse(tc.args); err != nil {
				t.Fatal(err)
			}
			checkSetting(t, o.validate(), tc.want)
		})
	}
}

func TestFixedKey(t *testing.T) {
	file := writeFile(t, "key", " tskey-auth-file\n")
	for name, tc := range map[string]struct {
		file, env, want, err string
	}{
		"none":       {},
		"file":       {file: file, want: "tskey-auth-file"},
		"variable":   {env: "tskey-auth-env", want: "tskey-auth-env"},
		"both":       {file: file, env: "tskey-auth-env", err: `--auth-key-file="` + file + `": TS_AUTHKEY is set, too`},
		"empty file": {file: writeFile(t, "empty", "\n"), err: `--auth-key-file="`},
		"no file":    {file: "/nowhere/key", err: `--auth-key-file="/nowhere/key": reading credentials: `},
	} {
		t.Run(name, func(t *testing.T) {
			keys, err := fixedKey(vars{"TS_AUTHKEY": tc.env}.environment(), tc.file)
			checkSetting(t, err, tc.err)
			if err != nil && strings.Contains(err.Error(), "tskey") {
				t.Errorf("the message holds a key: %v", err)
			}
			if (keys != nil) != (tc.want != "") {
				t.Fatalf("keys %v", keys)
			}
			if keys == nil {
				return
			}
			if key, err := keys.AuthKey(context.Background()); key != tc.want || err != nil {
				t.Errorf("key %q, %v, want %q", key, err, tc.want)
			}
		})
	}
}

func TestValidHostname(t *testing.T) {
	for name, ok := range map[string]bool{
		"k": true, "kube-apiserver": true, "a1": true, "1a": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "A": false, "a.b": false, "a_b": false, "a b": false, "a\n": false, "é": false, strings.Repeat("a", 64): false,
	} {
		if err := validHostname("--hostname", name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestLoginServer(t *testing.T) {
	for value, want := range map[string]string{
		"": "", "https://headscale.example.com": "https://headscale.example.com", "https://headscale.example.com/": "https://headscale.example.com",
		"http://127.0.0.1:8080": "http://127.0.0.1:8080",
	} {
		if got, err := loginServer("--login-server", value); got != want || err != nil {
			t.Errorf("%q is read as %q, %v", value, got, err)
		}
	}
	for _, value := range []string{"headscale.example.com", "https://", "ftp://example.com", "https://example.com/path", "https://example.com/?a=b", "://", "/"} {
		_, err := loginServer("--login-server", value)
		checkSetting(t, err, `--login-server="`+value+`": give the address of the control server, for example https://`)
	}
}

func TestNewLogger(t *testing.T) {
	for level, want := range map[string]slog.Level{
		"": slog.LevelInfo, "info": slog.LevelInfo, "debug": slog.LevelDebug, "dev": slog.LevelDebug, "warn": slog.LevelWarn, "error": slog.LevelError,
	} {
		log, err := newLogger(&bytes.Buffer{}, "--log-level", level)
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		if !log.Enabled(ctx, want) || log.Enabled(ctx, want-1) {
			t.Errorf("%q is not level %v", level, want)
		}
	}
	_, err := newLogger(&bytes.Buffer{}, "--log-level", "INFO")
	checkSetting(t, err, `--log-level="INFO": choose debug (or dev), info, warn or error`)
}

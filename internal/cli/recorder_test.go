// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tailhelm/tailhelm/internal/recorder"
)

func TestRecorderOptions(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		args []string
		want string // the setting that is wrong and its value, if one is
	}{
		"defaults":          {nil, ""},
		"all":               {[]string{"--keep=720h", "--keep-at-least=24h", "--max-total=10Gi", "--max-recording=0", "--min-free=1Gi", "--max-open=5", "--from=tag:a,tag:b", "--tags=tag:r"}, ""},
		"no folder":         {[]string{"--dir="}, `--dir=""`},
		"no such folder":    {[]string{"--dir=" + filepath.Join(dir, "none")}, "--dir="},
		"a bad name":        {[]string{"--hostname=a.b"}, `--hostname="a.b"`},
		"nobody may send":   {[]string{"--from="}, `--from=""`},
		"a tag that is not": {[]string{"--from=k8s"}, `--from="k8s"`},
		"a bad tag":         {[]string{"--tags=k8s"}, `--tags="k8s"`},
		"a bad size":        {[]string{"--max-total=10GB"}, `--max-total="10GB"`},
		"a negative size":   {[]string{"--min-free=-1"}, `--min-free="-1"`},
		"a negative age":    {[]string{"--keep=-1h"}, `--keep="-1h0m0s"`},
		"a negative floor":  {[]string{"--keep-at-least=-1h"}, `--keep-at-least="-1h0m0s"`},
		"none open":         {[]string{"--max-open=0"}, `--max-open="0"`},
		"no time to drain":  {[]string{"--drain-timeout=0"}, `--drain-timeout="0s"`},
		"no port":           {[]string{"--metrics-address=localhost"}, `--metrics-address="localhost"`},
		"a bad level":       {[]string{"--log-level=loud"}, `--log-level="loud"`},
		"a key, no state":   {[]string{"--auth-key-secret=r-0-config"}, `--auth-key-secret="r-0-config"`},
		"a state, no key":   {[]string{"--state-secret=r-0"}, `--auth-key-secret=""`},
		"two keys":          {[]string{"--state-secret=r-0", "--auth-key-secret=r-0-config", "--auth-key-file=f"}, `--auth-key-file="f"`},
		"no namespace":      {[]string{"--state-secret=r-0", "--auth-key-secret=r-0-config"}, `--namespace=""`},
		"a bad server":      {[]string{"--login-server=headscale"}, `--login-server="headscale"`},
	} {
		t.Run(name, func(t *testing.T) {
			var o recorderOptions
			c := newRecorderCommand(&o, vars{}.environment(), io.Discard)
			if err := c.ParseFlags(append([]string{"--dir=" + dir, "--state-dir=" + t.TempDir()}, tc.args...)); err != nil {
				t.Fatal(err)
			}
			_, err := o.service(vars{}.environment(), io.Discard)
			checkSetting(t, err, tc.want)
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has several lines: %q", err)
			}
			if want := (recorder.Limits{Age: 720 * 3600e9, AtLeast: 24 * 3600e9, Total: 10 << 30, Free: 1 << 30, Open: 5}); name == "all" && o.limits != want {
				t.Errorf("limits %+v, want %+v", o.limits, want)
			}
		})
	}
}

// What a container or a caller has chosen is no command to the terminal of who lists.
func TestRecorderList(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "operator", "20260101T000000.000Z-abcdefgh.cast")
	if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	text := `{"version":2,"timestamp":1767225600,"command":"sh\u001b[2J","srcNode":"laptop\u001b]0;x\u0007","srcNodeUser":"alice@example.com","kubernetes":{"PodName":"p","Namespace":"ns","SessionType":"exec"}}` +
		"\n" + `[0.5,"o","hello\r\n"]` + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		var stdout, stderr bytes.Buffer
		if code := Main(append([]string{"recorder"}, args...), nil, &stdout, &stderr); code != exitOK {
			t.Fatalf("%q: status %d: %s", args, code, &stderr)
		}
		return stdout.String()
	}
	list := run("list", "--dir", dir)
	for _, want := range []string{"2026-01-01T00:00:00Z", "alice@example.com", "ns/p", `"sh\x1b[2J"`, `laptop\x1b]0;x\a`, "true", "operator/20260101T000000.000Z-abcdefgh.cast"} {
		if !strings.Contains(list, want) {
			t.Errorf("the list does not say %s:\n%s", want, list)
		}
	}
	if strings.ContainsRune(list, '\x1b') {
		t.Errorf("the list has control characters: %q", list)
	}
	if played := run("play", "--speed", "0", file); played != "hello\r\n" {
		t.Errorf("played %q", played)
	}
	// What list names can be played, where the folder is known: by the flag, or as in a pod.
	const listed = "operator/20260101T000000.000Z-abcdefgh.cast"
	if played := run("play", "--dir", dir, "--speed=0", listed); played != "hello\r\n" {
		t.Errorf("played %q", played)
	}
	var stdout, stderr bytes.Buffer
	if code := Main([]string{"recorder", "play", "--speed=0", listed}, []string{"RECORDINGS_DIR=" + dir}, &stdout, &stderr); code != exitOK || stdout.String() != "hello\r\n" {
		t.Errorf("status %d, played %q: %s", code, &stdout, &stderr)
	}
	for _, args := range [][]string{{"cat", file}, {"cat", "--dir", dir, listed}} {
		if got := run(args...); got != text {
			t.Errorf("%q writes %q, want the recording as it is", args, got)
		}
	}
	if code := Main([]string{"recorder", "cat", file + "x"}, nil, &stdout, &stderr); code == exitOK {
		t.Error("a file that is not there is written")
	}
	for _, args := range [][]string{
		{"play"},
		{"play", "a", "b"},
		{"play", "--speed=-1", file},
		{"list"},
		{"list", "--dir", dir, "x"},
		{"cat"},
		{"cat", "a", "b"},
		{"events"},
		{"events", "--dir", dir, "x"},
		{"events", "--dir", dir, "--since=-1h"},
	} {
		var stdout, stderr bytes.Buffer
		if code := Main(append([]string{"recorder"}, args...), nil, &stdout, &stderr); code != exitUsage {
			t.Errorf("%q: status %d, want %d: %s", args, code, exitUsage, &stderr)
		}
	}
}

// Events are written as they are, those of all devices, from a time on.
func TestRecorderEvents(t *testing.T) {
	dir := t.TempDir()
	event := func(ago time.Duration, n int) string {
		return fmt.Sprintf(`{"timestamp":%d,"n":%d}`+"\n", time.Now().Add(-ago).Unix(), n)
	}
	write := func(name, text string, ago time.Duration) {
		t.Helper()
		path, at := filepath.Join(dir, name), time.Now().Add(-ago)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	const timeless, broken = `{"n":0}` + "\n", "no JSON\n"
	old, middle, recent, other := event(50*time.Hour, 1), event(3*time.Hour, 2), event(time.Hour, 3), event(2*time.Hour, 4)
	write("a/20260101.events.jsonl", old, 50*time.Hour)
	write("a/20260103.events.jsonl", middle+timeless+broken+recent+`{"timestamp":17`, time.Minute)
	write("b/20260103.events.jsonl", other, 2*time.Hour)
	write("b/20260103T000000.000Z-abcdefgh.cast", "{}", time.Minute)
	for since, want := range map[string]string{
		"0": old + other + middle + timeless + broken + recent, "24h": other + middle + timeless + broken + recent, "90m": timeless + broken + recent,
	} {
		var stdout, stderr bytes.Buffer
		if code := Main([]string{"recorder", "events", "--since", since}, []string{"RECORDINGS_DIR=" + dir}, &stdout, &stderr); code != exitOK || stdout.String() != want {
			t.Errorf("since %s: status %d, %s%s\nwant\n%s", since, code, &stdout, &stderr, want)
		}
	}
}

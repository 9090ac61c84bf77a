// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package recorder

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func newStore(t *testing.T, limits Limits) *Store {
	t.Helper()
	s, err := NewStore(t.TempDir(), limits, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// put makes a recording of n bytes that ended some time ago.
func (s *Store) put(t *testing.T, device string, n int, ago time.Duration) string {
	t.Helper()
	f, err := s.create(device)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(header + strings.Repeat("\n", n-len(header)))); err != nil {
		t.Fatal(err)
	}
	if err := f.end(true); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-ago)
	if err := os.Chtimes(f.path+whole, at, at); err != nil {
		t.Fatal(err)
	}
	return f.path + whole
}

// What is too old is deleted, and the oldest while there is too much; what is open
// stays.
func TestPrune(t *testing.T) {
	for name, tc := range map[string]struct {
		limits Limits
		stay   []int // of four recordings of 1000 bytes, 4, 3, 2 and 1 hours old
	}{
		"no limits": {Limits{}, []int{0, 1, 2, 3}}, "age": {Limits{Age: 150 * time.Minute}, []int{2, 3}},
		"total": {Limits{Total: 8 * blockSize}, []int{1, 2, 3}}, "both": {Limits{Total: 7 * blockSize, Age: 210 * time.Minute}, []int{2, 3}},
		"nothing fits": {Limits{Total: 1}, nil}, "too young to go": {Limits{Total: 1, AtLeast: 150 * time.Minute}, []int{2, 3}},
		"as old as that": {Limits{Age: 150 * time.Minute, Total: 1, AtLeast: 24 * time.Hour}, []int{2, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, Limits{})
			var paths, want []string
			for i := range 4 {
				paths = append(paths, s.put(t, "d", 1000, time.Duration(4-i)*time.Hour))
			}
			open, err := s.create("d")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := open.Write([]byte(header + strings.Repeat("\n", 1000-len(header)))); err != nil {
				t.Fatal(err)
			}
			s.limits = tc.limits
			if err := s.prune(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, i := range tc.stay {
				want = append(want, paths[i])
			}
			want = append(want, open.path+part)
			files, err := s.files()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range files {
				got = append(got, f.path)
			}
			if !slices.Equal(got, want) {
				t.Errorf("left are %q, want %q", got, want)
			}
			if _, used := s.usage(); used != onDisk(1000)*int64(len(want)) {
				t.Errorf("%d bytes are used, want %d", used, onDisk(1000)*int64(len(want)))
			}
			if err := open.end(true); err != nil {
				t.Error(err)
			}
		})
	}
}

// Who sends much does not push out what was recorded before: then there is no room.
func TestNothingOldEnoughToDelete(t *testing.T) {
	s := newStore(t, Limits{Total: 6 * blockSize, AtLeast: 48 * time.Hour})
	log := &strings.Builder{}
	s.log = slog.New(slog.NewTextHandler(log, nil))
	old := s.put(t, "proxy", 1000, 72*time.Hour)
	young := s.put(t, "proxy", 1000, 47*time.Hour)
	flood := s.put(t, "proxy", 2*blockSize, 0)
	if err := s.prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) || !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "reason=space") {
		t.Errorf("the oldest: %v, log %s", err, log)
	}
	metrics := prometheus.NewRegistry()
	NewHandler(HandlerConfig{Store: s, Metrics: metrics})
	want := `
		# HELP tailhelm_recorder_deleted_total Files with recordings or events that were deleted: for their age, or for space.
		# TYPE tailhelm_recorder_deleted_total counter
		tailhelm_recorder_deleted_total{reason="age"} 0
		tailhelm_recorder_deleted_total{reason="space"} 1
	`
	if err := testutil.GatherAndCompare(metrics, strings.NewReader(want), "tailhelm_recorder_deleted_total"); err != nil {
		t.Error(err)
	}
	if err := s.Ready(t.Context()); err != nil {
		t.Errorf("with room: %v", err)
	}
	s.put(t, "proxy", 1000, 0)
	for range 2 { // before it was looked through, and after
		if err := s.Ready(t.Context()); !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "48h") {
			t.Errorf("ready: %v", err)
		}
		if _, err := s.create("proxy"); !errors.Is(err, ErrFull) {
			t.Errorf("create: %v", err)
		}
		if err := s.appendEvent("proxy", []byte("{}\n")); !errors.Is(err, ErrFull) {
			t.Errorf("an event: %v", err)
		}
		if err := s.prune(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{young, flood} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	now, ran := s.now, s.ran
	s.now, s.ran = func() time.Time { return now().Add(2 * time.Hour) }, func() time.Duration { return ran() + 2*time.Hour }
	if err := s.Ready(t.Context()); err != nil {
		t.Errorf("when the oldest is old enough: %v", err)
	}
	if again, err := NewStore(s.dir, s.limits, s.log); err != nil || !errors.Is(again.Ready(t.Context()), ErrFull) {
		t.Errorf("after a restart: %v", err)
	}
}

// There is a warning before recordings are refused, and for nothing that can be deleted.
func TestWarningOfSpace(t *testing.T) {
	s := newStore(t, Limits{Total: 100 * blockSize, AtLeast: 48 * time.Hour})
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(s.metrics()...)
	old := s.put(t, "proxy", 79*blockSize, 72*time.Hour)
	again := func() *Store {
		t.Helper()
		again, err := NewStore(s.dir, s.limits, s.log)
		if err != nil {
			t.Fatal(err)
		}
		return again
	}
	check := func(want bool, protected int64) {
		t.Helper()
		for name, s := range map[string]*Store{"the store": s, "after a restart": again()} {
			if err := s.Warning(t.Context()); (err != nil) != want || err != nil && !strings.Contains(err.Error(), "younger than 48h0m0s") {
				t.Errorf("%s: %v, want a warning: %v", name, err, want)
			}
			if got := s.protected(); got != protected {
				t.Errorf("%s: %d bytes must stay, want %d", name, got, protected)
			}
		}
	}
	prune := func() {
		t.Helper()
		if err := s.prune(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	prune()
	check(false, 0)
	s.put(t, "proxy", 84*blockSize, 0) // makes room for itself
	prune()
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old one: %v", err)
	}
	check(false, 85*blockSize)
	young := s.put(t, "proxy", len(header), 47*time.Hour)
	check(true, 87*blockSize) // before it was looked through
	prune()
	check(true, 87*blockSize)
	if err := s.Ready(t.Context()); err != nil {
		t.Errorf("not ready: %v", err)
	}
	info, err := os.Stat(young)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{
		"protected_bytes": 87 * blockSize, "stored_bytes": 87 * blockSize, "limit_bytes": 100 * blockSize, "oldest_timestamp_seconds": float64(info.ModTime().Unix()),
	} {
		if got := gaugeOf(t, metrics, "tailhelm_recorder_"+name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for name, limits := range map[string]Limits{"no limit": {AtLeast: time.Hour}, "anything can go": {Total: 1}} {
		s.limits = limits
		if err := s.Warning(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// gaugeOf returns the value of a gauge.
func gaugeOf(t *testing.T, metrics *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// A clock that is set to another day, by mistake or by somebody, deletes nothing.
func TestClockIsSet(t *testing.T) {
	for by, stays := range map[time.Duration]bool{
		0: false, 30 * time.Minute: false, -30 * time.Minute: false, 10000 * time.Hour: true, -10 * time.Hour: true,
	} {
		s := newStore(t, Limits{Age: 100 * time.Hour, AtLeast: time.Hour})
		log := &strings.Builder{}
		s.log = slog.New(slog.NewTextHandler(log, nil))
		path := s.put(t, "proxy", 1000, 200*time.Hour)
		s.limits.Total = 1
		s.now = func() time.Time { return time.Now().Round(0).Add(by) }
		for range 2 {
			if err := s.prune(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(path); (err == nil) != stays {
			t.Errorf("set by %s: %v", by, err)
		}
		if said := strings.Count(log.String(), "the clock was set"); stays && said != 1 || !stays && said != 0 {
			t.Errorf("set by %s: log %s", by, log)
		}
		if err := s.Ready(t.Context()); stays && (err == nil || !strings.Contains(err.Error(), "the clock was set")) || !stays && err != nil {
			t.Errorf("set by %s: ready: %v", by, err)
		}
		if err := s.Warning(t.Context()); (err != nil) != stays || err != nil && !strings.Contains(err.Error(), "the clock was set") {
			t.Errorf("set by %s: warning: %v", by, err)
		}
	}
}

// A store knows what was there before.
func TestStoreCounts(t *testing.T) {
	s := newStore(t, Limits{})
	s.put(t, "d", 500, 0)
	again, err := NewStore(s.dir, Limits{}, s.log)
	if err != nil {
		t.Fatal(err)
	}
	if _, used := again.usage(); used != onDisk(500) {
		t.Errorf("%d bytes are used", used)
	}
	if _, err := NewStore(filepath.Join(s.dir, "none"), Limits{}, s.log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

// What others move away makes room, and what they add takes it.
func TestUsedFollowsTheDisk(t *testing.T) {
	s := newStore(t, Limits{Total: 3 * onDisk(1000), AtLeast: time.Hour})
	var paths []string
	for range 4 {
		paths = append(paths, s.put(t, "d", 1000, 0))
	}
	if err := s.hasRoom(); !errors.Is(err, ErrFull) {
		t.Fatalf("with %d recordings: %v", len(paths), err)
	}
	for _, path := range paths[:3] {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, used := s.usage(); used != onDisk(1000) || s.hasRoom() != nil {
		t.Errorf("%d bytes are used by one recording of 1000: %v", used, s.hasRoom())
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(paths[0]), "copied"+whole), make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, used := s.usage(); used != 2*onDisk(1000) {
		t.Errorf("%d bytes are used by two recordings of 1000", used)
	}
}

// What is acknowledged is found after a crash: its name is on the disk, too.
func TestNamesLast(t *testing.T) {
	s := newStore(t, Limits{})
	dir := filepath.Join(s.dir, "proxy")
	var synced []string
	broken := ""
	s.syncDir = func(dir string) error {
		synced = append(synced, dir)
		if dir == broken {
			return errors.New("no sync")
		}
		return nil
	}
	check := func(what string, want ...string) {
		t.Helper()
		if !slices.Equal(synced, want) {
			t.Errorf("%s syncs %q, want %q", what, synced, want)
		}
		synced = nil
	}
	event := func() error { return s.appendEvent("proxy", []byte("{}\n")) }
	for _, broken = range []string{s.dir, dir} {
		if _, err := s.create("proxy"); err == nil {
			t.Errorf("a recording begins without a sync of %s", broken)
		}
		if err := event(); err == nil {
			t.Errorf("an event is kept without a sync of %s", broken)
		}
		if open, _ := s.usage(); open != 0 {
			t.Errorf("%d recordings are open", open)
		}
	}
	broken, synced = "", nil
	f, err := s.create("proxy")
	if err != nil {
		t.Fatal(err)
	}
	check("a recording", dir)
	if err := errors.Join(event(), event()); err != nil {
		t.Fatal(err)
	}
	check("two events", dir)
	if err := f.end(false); err != nil {
		t.Error(err)
	}
	synced = nil
	if f, err = s.create("another"); err != nil {
		t.Fatal(err)
	}
	check("a new device's recording", s.dir, filepath.Join(s.dir, "another"))
	if err := f.end(false); err != nil {
		t.Error(err)
	}
	if list, err := List(s.dir); err != nil || len(list) > 0 {
		t.Errorf("left are %+v, %v", list, err)
	}
}

// Many small recordings count for what they take.
func TestSmallFiles(t *testing.T) {
	s := newStore(t, Limits{Total: 100 * blockSize, AtLeast: time.Hour})
	for range 51 {
		if err := s.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.put(t, "proxy", len(header), 0)
	}
	if err := s.Ready(t.Context()); !errors.Is(err, ErrFull) {
		t.Errorf("ready: %v", err)
	}
	again, err := NewStore(s.dir, s.limits, s.log)
	if err != nil {
		t.Fatal(err)
	}
	_, used := s.usage()
	if _, counted := again.usage(); counted != used {
		t.Errorf("%d bytes are used, and %d after a restart", used, counted)
	}
}

// A file system is full, too, when it has no room for names.
func TestFree(t *testing.T) {
	for name, tc := range map[string]struct {
		st   syscall.Statfs_t
		want int64
	}{
		"bytes":     {syscall.Statfs_t{Bavail: 3, Bsize: 512, Files: 5000, Ffree: 1000}, 1536},
		"no names":  {syscall.Statfs_t{Bavail: 3, Bsize: 512, Files: 5000, Ffree: 999}, 0},
		"unbounded": {syscall.Statfs_t{Bavail: 3, Bsize: 512}, 1536},
	} {
		if got := freeOf(tc.st); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

// The name of a device never leads out of the folder.
// What a file system keeps at the root of a volume is not looked into: that is root's alone.
func TestLostAndFound(t *testing.T) {
	s := newStore(t, Limits{})
	kept := s.put(t, "kube", 1000, 0)
	s.put(t, "lost+found", 1000, 0) // a device of this name has another folder
	dir := filepath.Join(s.dir, lostAndFound)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "#12"+whole), []byte(header), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := List(s.dir)
	if err != nil || len(list) != 2 || !slices.ContainsFunc(list, func(i Info) bool { return i.Path == kept }) {
		t.Errorf("the recordings are %+v, %v", list, err)
	}
}

func FuzzSafeName(f *testing.F) {
	for _, name := range []string{"operator.tail1234.ts.net", "", ".", "..", "../../etc", "/", "a/b", "a\x00b", strings.Repeat("x", 1000), "…", ".cast"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		safe := safeName(name)
		if filepath.Base(safe) != safe || safe == "." || safe == ".." || !filepath.IsLocal(safe) || len(safe) > 253 {
			t.Errorf("%q becomes %q", name, safe)
		}
	})
}

func TestList(t *testing.T) {
	s := newStore(t, Limits{})
	first := s.put(t, "b", 500, time.Hour)
	second := s.put(t, "a", 600, time.Minute)
	if err := os.WriteFile(filepath.Join(s.dir, "a", "broken"+part), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := List(s.dir)
	if err != nil || len(list) != 3 {
		t.Fatalf("%+v, %v", list, err)
	}
	if list[0].Path != first || list[1].Path != second || !list[0].Whole || list[0].Bytes != 500 || list[0].Header.SrcNodeUser != "alice@example.com" {
		t.Errorf("%+v", list[:2])
	}
	if list[2].Whole || list[2].Header.Version != 0 {
		t.Errorf("%+v", list[2])
	}
}

// A recording is played in its own time, or another.
func TestPlay(t *testing.T) {
	text := header + `[1.5,"o","a"]` + "\n" + `[1.6,"r","100x50"]` + "\n" + `[11.5,"o","b\u001b[0m"]` + "\n"
	for name, tc := range map[string]struct {
		o    PlayOptions
		took time.Duration
	}{
		"at once": {PlayOptions{}, 0}, "as it was": {PlayOptions{Speed: 1}, 11500 * time.Millisecond},
		"faster": {PlayOptions{Speed: 2}, 5750 * time.Millisecond}, "short pauses": {PlayOptions{Speed: 1, Idle: time.Second}, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var w bytes.Buffer
				start := time.Now()
				if err := Play(t.Context(), &w, strings.NewReader(text), tc.o); err != nil || w.String() != "ab\x1b[0m" {
					t.Errorf("played %q, %v", w.String(), err)
				}
				if took := time.Since(start); took != tc.took {
					t.Errorf("it took %s, want %s", took, tc.took)
				}
			})
		})
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Play(ended, &bytes.Buffer{}, strings.NewReader(text), PlayOptions{Speed: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	for _, bad := range []string{"", "x\n", header + "x\n"} {
		if err := Play(t.Context(), &bytes.Buffer{}, strings.NewReader(bad), PlayOptions{}); err == nil {
			t.Errorf("%q is played", bad)
		}
	}
}

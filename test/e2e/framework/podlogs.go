// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
)

// podLogs keeps what the containers of a namespace log, of pods that are gone, too.
type podLogs struct {
	kube kubernetes.Interface
	dir  string

	mu       sync.Mutex
	followed map[string]bool // IDs of containers
	all      sync.WaitGroup
}

func newPodLogs(kube kubernetes.Interface, namespace string) (*podLogs, error) {
	l := &podLogs{kube: kube, dir: filepath.Join(*artifacts, "logs", namespace), followed: map[string]bool{}}
	if err := os.RemoveAll(l.dir); err != nil { // of an earlier run
		return nil, err
	}
	return l, os.MkdirAll(l.dir, 0o750)
}

// follow begins to keep the logs of the containers of a pod that run, until they end or ctx
// is done. What cannot be kept is left out: it is for people.
func (l *podLogs) follow(ctx context.Context, pod *corev1.Pod) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Running == nil || l.followed[c.ContainerID] {
			continue
		}
		l.followed[c.ContainerID] = true
		name := pod.Name + "-" + c.State.Running.StartedAt.UTC().Format("150405") + "-" + c.Name + ".log"
		request := l.kube.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: c.Name, Follow: true})
		l.all.Go(func() {
			stream, err := request.Stream(ctx)
			if err != nil {
				return
			}
			defer func() { _ = stream.Close() }()
			file, err := os.Create(filepath.Join(l.dir, name)) //nolint:gosec // in the folder of artifacts
			if err != nil {
				return
			}
			defer func() { _ = file.Close() }()
			_, _ = io.Copy(file, stream)
		})
	}
}

// checkLogs fails the test if the pods of a release that was uninstalled in order lacked a
// right, or if cleaning up took more than asking the operator. All pods have ended.
//
// Who lacks a right often tries again, or does without, so that nothing else would tell.
// (The log also has what callers may not do, in other words.)
func (r *Release) checkLogs(t *testing.T) {
	t.Helper()
	denied := regexp.MustCompile(`User \\*"system:serviceaccount:` + r.Namespace + `:[^"]+" cannot `)
	firm := regexp.MustCompile(`"note":"[^"]`)
	paths, err := filepath.Glob(filepath.Join(r.exits.logs.dir, "*.log"))
	if err != nil || len(paths) == 0 {
		t.Errorf("no logs in %s: %v", r.exits.logs.dir, err)
	}
	for _, path := range paths {
		content, err := os.ReadFile(path) //nolint:gosec // in the folder of artifacts
		if err != nil {
			t.Error(err)
		}
		for line := range strings.Lines(string(content)) {
			if denied.MatchString(line) || firm.MatchString(line) {
				t.Errorf("%s: %s", filepath.Base(path), line)
			}
		}
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// pod is a Pod that this kubelet runs: a folder and containers.
type pod struct {
	namespace, name string
	uid             types.UID
	dir             string
	life            context.Context
	end             context.CancelFunc // of life

	// containers are by name. The lock of the kubelet guards the map.
	containers map[string]*container
}

func (k *Kubelet) newPod(obj *corev1.Pod) (*pod, error) {
	p := &pod{
		namespace:  obj.Namespace,
		name:       obj.Name,
		uid:        obj.UID,
		dir:        filepath.Join(k.options.Dir, string(obj.UID)),
		containers: make(map[string]*container),
	}
	p.life, p.end = context.WithCancel(k.life)
	return p, os.MkdirAll(p.dir, 0o700)
}

// kill ends every process of the pod, closes its streams and removes its folder.
func (p *pod) kill() error {
	p.end()
	var errs []error
	for _, c := range p.containers {
		errs = append(errs, c.kill())
	}
	return errors.Join(append(errs, os.RemoveAll(p.dir))...)
}

// PortForward connects stream with a port of 127.0.0.1, which all pods share. It
// implements portforward.PortForwarder.
func (p *pod) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	// Not the caller's context: the library gives none that ends.
	var dialer net.Dialer
	conn, err := dialer.DialContext(p.life, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		return fmt.Errorf("pod %s/%s: %w", p.namespace, p.name, err)
	}
	defer func() { _ = conn.Close() }()
	// Ends the copies with the pod.
	defer context.AfterFunc(p.life, func() { _ = conn.Close() })()
	go func() {
		_, _ = io.Copy(conn, stream)
		// The server may still have something to say.
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	// A client that goes away in the middle is no error of the pod.
	_, _ = io.Copy(stream, conn)
	return nil
}

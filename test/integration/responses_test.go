// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package integration_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	clientkubernetes "k8s.io/client-go/kubernetes"

	"github.com/tailhelm/tailhelm/test/kubernetes"
)

const (
	bigCount = 27
	bigBytes = 400_000
)

// bigNamespace has more than 10 MB of ConfigMaps. Tests only read it.
var bigNamespace = sync.OnceValues(func() (string, error) {
	ctx := context.Background()
	admin := shared.cluster.Client().CoreV1()
	name := unique("big")
	if _, err := admin.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		return "", err
	}
	for i := range bigCount {
		var b strings.Builder
		for j := 0; b.Len() < bigBytes; j++ {
			fmt.Fprintf(&b, "%d.%d;", i, j*j)
		}
		if _, err := admin.ConfigMaps(name).Create(ctx, configMap(fmt.Sprintf("m%02d", i), "k", b.String()), metav1.CreateOptions{}); err != nil {
			return "", err
		}
	}
	return name, nil
})

// bigReader is a caller who may read bigNamespace.
func bigReader(t *testing.T, p *proxy) (*caller, string) {
	t.Helper()
	ns := must[string](t)(bigNamespace())
	c := newUser(t, p)
	bind(t, ns, "cluster-admin", user(c.user))
	return c, ns
}

// TestLargeLists: large lists come through complete, in every encoding.
func TestLargeLists(t *testing.T) {
	t.Parallel()
	c, ns := bigReader(t, shared.proxy)
	ctx := within(t, patience)
	want := must[*corev1.ConfigMapList](t)(shared.cluster.Client().CoreV1().ConfigMaps(ns).List(ctx, metav1.ListOptions{}))
	for _, media := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		for _, noGzip := range []bool{false, true} {
			config := c.config()
			config.ContentType, config.DisableCompression = media, noGzip
			client := must[*clientkubernetes.Clientset](t)(clientkubernetes.NewForConfig(config))
			got, err := client.CoreV1().ConfigMaps(ns).List(ctx, metav1.ListOptions{})
			if err != nil {
				t.Errorf("%s, noGzip %v: %v", media, noGzip, err)
				continue
			}
			equal := slices.EqualFunc(want.Items, got.Items, func(a, b corev1.ConfigMap) bool {
				return a.Name == b.Name && a.UID == b.UID && a.Data["k"] == b.Data["k"]
			})
			if !equal {
				t.Errorf("%s, noGzip %v: another list than without the proxy", media, noGzip)
			}
		}
	}
}

// TestCompression: what the API server compressed is not touched, and what the
// client does not accept is not compressed.
func TestCompression(t *testing.T) {
	t.Parallel()
	c, ns := bigReader(t, shared.proxy)
	path := "/api/v1/namespaces/" + ns + "/configmaps"
	res, packed := c.get(path, "Accept-Encoding", "gzip")
	if res.Header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("Content-Encoding is %q, want gzip", res.Header.Get("Content-Encoding"))
	}
	r := must[*gzip.Reader](t)(gzip.NewReader(bytes.NewReader(packed)))
	unpacked, err := io.ReadAll(r)
	if err != nil || len(unpacked) < bigCount*bigBytes {
		t.Fatalf("unpacked %d bytes: %v", len(unpacked), err)
	}
	res, plain := c.get(path, "Accept-Encoding", "identity")
	if res.Header.Get("Content-Encoding") != "" || !json.Valid(plain) || len(plain) < bigCount*bigBytes {
		t.Errorf("without compression: Content-Encoding %q, %d bytes", res.Header.Get("Content-Encoding"), len(plain))
	}
	if len(packed) >= len(plain) {
		t.Errorf("compressed %d bytes, plain %d", len(packed), len(plain))
	}
}

// TestNegotiation: the client gets the media type that it asks for, of our own
// refusals too.
func TestNegotiation(t *testing.T) {
	t.Parallel()
	c, ns, maps := configMaps(t, shared.proxy)
	must[*corev1.ConfigMap](t)(maps.Create(within(t, patience), configMap("x"), metav1.CreateOptions{}))
	path := "/api/v1/namespaces/" + ns + "/configmaps/x"
	const protobuf = "application/vnd.kubernetes.protobuf"
	for accept, want := range map[string]struct{ media, prefix string }{
		"application/json;as=Table;v=v1;g=meta.k8s.io,application/json": {"application/json", `{"kind":"Table"`},
		"application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io":  {"application/json", `{"kind":"PartialObjectMetadata"`},
		protobuf:           {protobuf, "k8s\x00"},
		"application/yaml": {"application/yaml", "apiVersion: v1"},
	} {
		res, body := c.get(path, "Accept", accept)
		if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != want.media || !strings.HasPrefix(string(body), want.prefix) {
			t.Errorf("%s: %s %s %.40q", accept, res.Status, res.Header.Get("Content-Type"), body)
		}
	}
	if res, _ := c.get(path, "Accept", "image/png"); res.StatusCode != http.StatusNotAcceptable {
		t.Errorf("image/png: %s", res.Status)
	}
	res, body := c.get(path, "Accept", protobuf, "Impersonate-User", "boss")
	if res.StatusCode != http.StatusForbidden || !strings.HasPrefix(string(body), "k8s\x00") || !strings.Contains(string(body), "This proxy impersonates you, ") {
		t.Errorf("a refusal in protobuf: %s %q", res.Status, body)
	}
}

// TestAbort: a client that goes away in the middle is gone for the API server too.
func TestAbort(t *testing.T) {
	t.Parallel()
	p := newReadyProxy(t, proxyOptions{})
	c, ns := bigReader(t, p)
	for kind, path := range map[string]string{
		"rest":  "/api/v1/namespaces/" + ns + "/configmaps",
		"watch": "/api/v1/namespaces/" + ns + "/configmaps?watch=1",
	} {
		ctx, cancel := context.WithCancel(within(t, patience))
		res, err := c.HTTPClient().Do(c.request(ctx, http.MethodGet, path, nil, "Accept-Encoding", "identity"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(res.Body, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		p.waitMetric(t, 1, "tailhelm_apiproxy_requests_in_flight", "kind="+kind)
		cancel()
		if _, err := io.Copy(io.Discard, res.Body); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", kind, err)
		}
		_ = res.Body.Close()
		p.waitMetric(t, 0, "tailhelm_apiproxy_requests_in_flight", "kind="+kind)
		e := p.waitRequest(t, func(e logEntry) bool { return e.Kind == kind && e.Namespace == ns })
		if e.Bytes == 0 {
			t.Errorf("%s: the log says that nothing was sent", kind)
		}
		// The API server has noticed, too: it has ended the request.
		if _, err := shared.cluster.WaitForAuditEvent(within(t, patience), auditOf(e)); err != nil {
			t.Error(err)
		}
	}
}

// auditOf selects the end of a request in the API server's log.
func auditOf(e logEntry) kubernetes.AuditFilter {
	return kubernetes.AuditFilter{ID: types.UID(e.AuditID), Stage: auditv1.StageResponseComplete}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestClassify(t *testing.T) {
	type kindOf struct {
		Kind                                         Kind
		Verb, Namespace, Resource, Subresource, Name string
	}
	upgrade := http.Header{"Connection": {"keep-alive, Upgrade"}, "Upgrade": {"websocket"}}
	for name, tc := range map[string]struct {
		method, uri string
		header      http.Header
		want        kindOf
	}{
		"get":                        {"GET", "/api/v1/namespaces/a/pods/p", nil, kindOf{KindREST, "get", "a", "pods", "", "p"}},
		"list":                       {"GET", "/api/v1/pods", nil, kindOf{KindREST, "list", "", "pods", "", ""}},
		"list, HEAD":                 {"HEAD", "/api/v1/pods", nil, kindOf{KindREST, "list", "", "pods", "", ""}},
		"watch":                      {"GET", "/api/v1/pods?watch=1", nil, kindOf{KindWatch, "watch", "", "pods", "", ""}},
		"watch=true":                 {"GET", "/apis/apps/v1/namespaces/a/deployments?watch=true", nil, kindOf{KindWatch, "watch", "a", "deployments", "", ""}},
		"watch without a value":      {"GET", "/api/v1/pods?watch", nil, kindOf{KindWatch, "watch", "", "pods", "", ""}},
		"watch=false":                {"GET", "/api/v1/pods?watch=false", nil, kindOf{KindREST, "list", "", "pods", "", ""}},
		"watch beside nonsense":      {"GET", "/api/v1/pods?watch=1&limit=x", nil, kindOf{KindWatch, "watch", "", "pods", "", ""}},
		"watch in the path":          {"GET", "/api/v1/watch/namespaces/a/pods", nil, kindOf{KindWatch, "watch", "a", "pods", "", ""}},
		"watch of one, by selector":  {"GET", "/api/v1/namespaces/a/pods?watch=1&fieldSelector=metadata.name%3Dp", nil, kindOf{KindWatch, "watch", "a", "pods", "", "p"}},
		"a named object, watched":    {"GET", "/api/v1/namespaces/a/pods/p?watch=1", nil, kindOf{KindREST, "get", "a", "pods", "", "p"}},
		"watch=1 of another service": {"GET", "/custom?watch=1", nil, kindOf{KindREST, "get", "", "", "", ""}},
		"create":                     {"POST", "/api/v1/namespaces/a/pods?watch=1", nil, kindOf{KindREST, "create", "a", "pods", "", ""}},
		"log":                        {"GET", "/api/v1/namespaces/a/pods/p/log", nil, kindOf{KindREST, "get", "a", "pods", "log", "p"}},
		"log -f":                     {"GET", "/api/v1/namespaces/a/pods/p/log?container=c&follow=true", nil, kindOf{KindStream, "get", "a", "pods", "log", "p"}},
		"log, follow without value":  {"GET", "/api/v1/namespaces/a/pods/p/log?follow", nil, kindOf{KindStream, "get", "a", "pods", "log", "p"}},
		"log, follow=1":              {"GET", "/api/v1/namespaces/a/pods/p/log?follow=1", nil, kindOf{KindStream, "get", "a", "pods", "log", "p"}},
		"log, follow=false":          {"GET", "/api/v1/namespaces/a/pods/p/log?follow=false", nil, kindOf{KindREST, "get", "a", "pods", "log", "p"}},
		"log, follow=0":              {"GET", "/api/v1/namespaces/a/pods/p/log?follow=0", nil, kindOf{KindREST, "get", "a", "pods", "log", "p"}},
		"follow of something else":   {"GET", "/api/v1/namespaces/a/pods/p/status?follow=true", nil, kindOf{KindREST, "get", "a", "pods", "status", "p"}},
		"escaped path":               {"GET", "/api/v1/namespaces/a/pods%2Fp/%6cog?follow=true", nil, kindOf{KindStream, "get", "a", "pods", "log", "p"}},
		"exec":                       {"POST", "/api/v1/namespaces/a/pods/p/exec?command=sh", upgrade, kindOf{KindStream, "create", "a", "pods", "exec", "p"}},
		"exec, WebSocket":            {"GET", "/api/v1/namespaces/a/pods/p/exec/", upgrade, kindOf{KindStream, "get", "a", "pods", "exec", "p"}},
		"exec without an upgrade":    {"POST", "/api/v1/namespaces/a/pods/p/exec", nil, kindOf{KindREST, "create", "a", "pods", "exec", "p"}},
		"watch over WebSocket":       {"GET", "/api/v1/pods?watch=1", upgrade, kindOf{KindStream, "watch", "", "pods", "", ""}},
		"upgrade of a service":       {"GET", "/api/v1/namespaces/a/services/s/proxy/ws", upgrade, kindOf{KindStream, "get", "a", "services", "proxy", "s"}},
		"Upgrade not in Connection":  {"GET", "/api/v1/pods", http.Header{"Upgrade": {"websocket"}}, kindOf{KindREST, "list", "", "pods", "", ""}},
		"Connection without Upgrade": {"GET", "/api/v1/pods", http.Header{"Connection": {"Upgrade"}}, kindOf{KindREST, "list", "", "pods", "", ""}},
		"not a resource":             {"GET", "/openapi/v3", nil, kindOf{KindREST, "get", "", "", "", ""}},
		"root":                       {"GET", "/", nil, kindOf{KindREST, "get", "", "", "", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), tc.method, tc.uri, nil)
			r.Header = tc.header
			info, kind, err := classify(r)
			if err != nil {
				t.Fatal(err)
			}
			got := kindOf{kind, info.Verb, info.Namespace, info.Resource, info.Subresource, info.Name}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("classified as (-want +got):\n%s", diff)
			}
		})
	}
}

func TestClassifyRefuses(t *testing.T) {
	for _, uri := range []string{"/api/v1/watch", "/api/v1/proxy", "/apis/apps/v1/watch/"} {
		if info, _, err := classify(httptest.NewRequestWithContext(t.Context(), http.MethodGet, uri, nil)); err == nil {
			t.Errorf("%s is classified as %+v", uri, info)
		}
	}
}

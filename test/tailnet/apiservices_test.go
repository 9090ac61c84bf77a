// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet_test

import (
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	tailscale "tailscale.com/client/tailscale/v2"
	"tailscale.com/net/tsaddr"

	"github.com/tailhelm/tailhelm/test/tailnet"
)

func TestAPIServices(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	ctx, api := testContext(t), oauth(t, tn, "tag:proxy").VIPServices()
	want := tailscale.VIPService{
		Name: serviceName, Comment: "a test", Annotations: map[string]string{"owner": "me"},
		Ports: []string{"tcp:443", "tcp:80"}, Tags: []string{"tag:proxy"},
	}
	if err := api.CreateOrUpdate(ctx, want); err != nil {
		t.Fatal(err)
	}
	got, err := api.Get(ctx, serviceName)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Addrs) != 2 || !slices.ContainsFunc(got.Addrs, func(s string) bool { return strings.HasPrefix(s, "100.") }) {
		t.Errorf("addresses %q, want an IPv4 and an IPv6 one", got.Addrs)
	}
	for _, a := range got.Addrs {
		if ip, err := netip.ParseAddr(a); err != nil || !tsaddr.IsTailscaleIP(ip) {
			t.Errorf("address %q is not one of a tailnet: %v", a, err)
		}
	}
	want.Addrs = got.Addrs
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Error(diff)
	}
	edited := want
	edited.Addrs, edited.Comment, edited.Annotations = nil, "", nil
	if err := api.CreateOrUpdate(ctx, edited); err != nil {
		t.Fatal(err)
	}
	edited.Addrs = want.Addrs
	if err := tn.SetService(tailscale.VIPService{Name: "svc:another", Ports: []string{"do-not-validate"}}); err != nil {
		t.Fatal(err)
	}
	list, err := api.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[0].Name != "svc:another" || list[0].Addrs[0] == want.Addrs[0] {
		t.Errorf("List = %+v", list)
	}
	if diff := cmp.Diff(edited, list[1]); diff != "" {
		t.Errorf("after an update without addresses: %s", diff)
	}
	if err := api.Delete(ctx, serviceName); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Get(ctx, serviceName); !tailscale.IsNotFound(err) {
		t.Errorf("Get of a deleted Service = %v", err)
	}
	if err := api.Delete(ctx, serviceName); !tailscale.IsNotFound(err) {
		t.Errorf("Delete of a deleted Service = %v", err)
	}
}

func TestAPIServicesRefuse(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	if err := tn.SetTagOwners(map[string][]string{"tag:k8s": {"tag:operator"}}); err != nil {
		t.Fatal(err)
	}
	if err := tn.SetService(tailscale.VIPService{Name: "svc:other", Ports: []string{"tcp:1"}, Addrs: []string{"100.99.0.1"}}); err != nil {
		t.Fatal(err)
	}
	api := oauth(t, tn, "tag:operator").VIPServices()
	for _, tc := range []struct {
		name   string
		change func(*tailscale.VIPService)
		want   string // part of the error; empty: none
	}{
		{"good", func(*tailscale.VIPService) {}, ""},
		{"range of ports", func(s *tailscale.VIPService) { s.Ports = []string{"udp:10-20"} }, ""},
		{"own address", func(s *tailscale.VIPService) { s.Addrs = []string{"100.99.0.2"} }, ""},
		{"no svc:", func(s *tailscale.VIPService) { s.Name = "kube" }, "svc:"},
		{"no label", func(s *tailscale.VIPService) { s.Name = "svc:a_b" }, "a_b"},
		{"no port", func(s *tailscale.VIPService) { s.Ports = nil }, "ports must not be empty"},
		{"no protocol", func(s *tailscale.VIPService) { s.Ports = []string{"443"} }, `port "443" is not valid`},
		{"bad port", func(s *tailscale.VIPService) { s.Ports = []string{"tcp:https"} }, `port "tcp:https" is not valid`},
		{"foreign tag", func(s *tailscale.VIPService) { s.Tags = []string{"tag:x"} }, "requested tags [tag:x] are invalid or not permitted"},
		{"no tag", func(s *tailscale.VIPService) { s.Tags = []string{"k8s"} }, "requested tags [k8s] are invalid or not permitted"},
		{"public address", func(s *tailscale.VIPService) { s.Addrs = []string{"192.0.2.1"} }, "192.0.2.1"},
		{"used address", func(s *tailscale.VIPService) { s.Addrs = []string{"100.99.0.1"} }, "100.99.0.1 is in use"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := tailscale.VIPService{Name: serviceName, Ports: []string{"tcp:443"}, Tags: []string{"tag:k8s"}}
			tc.change(&s)
			err := api.CreateOrUpdate(testContext(t), s)
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var apiErr tailscale.APIError
			if !errors.As(err, &apiErr) || apiErr.Status != http.StatusBadRequest || !strings.Contains(apiErr.Message, tc.want) {
				t.Errorf("err = %v, want 400 %s", err, tc.want)
			}
		})
	}
}

func TestAPIServiceFaults(t *testing.T) {
	tn := tailnet.New(t, tailnet.Options{NoHTTPS: true})
	ctx, api := testContext(t), oauth(t, tn, "tag:proxy").VIPServices()
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests, http.StatusInternalServerError} {
		tn.Fail(tailnet.PathServices+"/"+serviceName, tailnet.Fault{Method: http.MethodPut, Status: status, Message: "on purpose", Times: 1})
		err := api.CreateOrUpdate(ctx, serviceSpec)
		var apiErr tailscale.APIError
		if !errors.As(err, &apiErr) || apiErr.Status != status || apiErr.Message != "on purpose" {
			t.Errorf("err = %v, want %d", err, status)
		}
		if n := len(tn.Services()); n != 0 {
			t.Errorf("%d Services after a failure", n)
		}
	}
	if err := api.CreateOrUpdate(ctx, serviceSpec); err != nil {
		t.Error(err)
	}
}

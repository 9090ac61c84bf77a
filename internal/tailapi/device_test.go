// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailapi

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// A device is deleted when the tailnet says that it is the caller's, and never otherwise.
func TestOwnDevice(t *testing.T) {
	own := func(d DeviceIdentity) bool {
		return len(d.Tags) == 0 || d.Hostname == "kube-0" && slices.Equal(d.Tags, []string{"tag:k8s"})
	}
	for name, tc := range map[string]struct {
		id, answer string
		deleted    bool
		refusal    string
	}{
		"own":               {"n1CNTRL", `{"nodeId":"n1CNTRL","hostname":"kube-0","tags":["tag:k8s"]}`, true, ""},
		"another name":      {"n1CNTRL", `{"nodeId":"n1CNTRL","hostname":"database","tags":["tag:k8s"]}`, false, `device n1CNTRL is "database" with tag:k8s`},
		"other tags":        {"n1CNTRL", `{"nodeId":"n1CNTRL","hostname":"kube-0","tags":["tag:k8s","tag:prod"]}`, false, "tag:k8s, tag:prod"},
		"a person's":        {"n1CNTRL", `{"nodeId":"n1CNTRL","hostname":"kube-0"}`, false, "has no tags"},
		"another device":    {"n1CNTRL", `{"nodeId":"n2CNTRL","hostname":"kube-0","tags":["tag:k8s"]}`, false, "device n1CNTRL"},
		"a number":          {"17", "", false, `"17" is no ID`},
		"a path":            {"../tailnet/-/keys/k1", "", false, "is no ID"},
		"a path, escaped":   {"n1%2f..", "", false, "is no ID"},
		"a query":           {"n1?fields=all", "", false, "is no ID"},
		"nothing":           {"", "", false, "is no ID"},
		"more than an ID":   {"n" + strings.Repeat("1", 100), "", false, "is no ID"},
		"ID and a new line": {"n1CNTRL\n", "", false, "is no ID"},
	} {
		t.Run(name, func(t *testing.T) {
			var requests []string
			c, _ := client(t, &fakeAPI{other: func(w http.ResponseWriter, r *http.Request) {
				requests = append(requests, r.Method+" "+r.URL.Path)
				status(200, tc.answer)(w, r)
			}})
			d, err := c.OwnDevice(t.Context(), tc.id, own)
			var refused *NotOwnError
			switch {
			case tc.refusal != "" && (d != nil || !errors.As(err, &refused) || !strings.Contains(err.Error(), tc.refusal)):
				t.Fatalf("%v, %v, want a refusal with %q", d, err, tc.refusal)
			case tc.refusal == "" && (d == nil || err != nil):
				t.Fatalf("%v, %v, want the device", d, err)
			}
			if d != nil {
				if err := c.DeleteDevice(t.Context(), *d); err != nil {
					t.Fatal(err)
				}
			}
			if got := slices.Contains(requests, "DELETE /api/v2/device/"+tc.id); got != tc.deleted {
				t.Errorf("requests %q, want a deletion: %v", requests, tc.deleted)
			}
			if strings.Contains(tc.refusal, "no ID") && len(requests) > 0 {
				t.Errorf("requests %q for what is no ID", requests)
			}
		})
	}
	c, _ := client(t, &fakeAPI{other: func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s %s", r.Method, r.URL.Path) }})
	if err := c.DeleteDevice(t.Context(), OwnDevice{}); err == nil {
		t.Error("a device that nobody has looked at was deleted")
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// Kind is how long a request is expected to live. It decides how the request is
// measured and when it ends in a drain.
type Kind string

// The kinds of request.
const (
	// KindREST is a request with one response: it ends by itself.
	KindREST Kind = "rest"
	// KindWatch is a watch: it never ends by itself, and its client starts
	// another when it ends.
	KindWatch Kind = "watch"
	// KindStream is a session of a person or program with a pod: exec, attach,
	// port-forward, logs -f, and upgrades through a proxy subresource. What ends it
	// is lost.
	KindStream Kind = "stream"
)

// resolver classifies requests as kube-apiserver does (its generic server's
// default prefixes).
var resolver = &apirequest.RequestInfoFactory{
	APIPrefixes:          sets.NewString("api", "apis"),
	GrouplessAPIPrefixes: sets.NewString("api"),
}

// classify returns what r asks for and its kind. The decoded path counts, as it
// does in the API server. It errs when the API server's own parser does.
func classify(r *http.Request) (*apirequest.RequestInfo, Kind, error) {
	info, err := resolver.NewRequestInfo(r)
	if err != nil {
		// The parser's own message repeats the URL, and with it whatever the client
		// has put into the query.
		return nil, "", fmt.Errorf("the path %q names no resource", clip(r.URL.Path))
	}
	switch {
	case isUpgrade(r):
		return info, KindStream, nil
	case info.IsResourceRequest && info.Verb == "watch":
		return info, KindWatch, nil
	case info.IsResourceRequest && info.Subresource == "log" && follows(r):
		return info, KindStream, nil
	}
	return info, KindREST, nil
}

// follows reports whether a request for a log asks to follow it.
func follows(r *http.Request) bool {
	return isTrue(r.URL.Query()["follow"])
}

// isTrue reads a parameter of a query as the API server's conversion does.
func isTrue(values []string) bool {
	var is bool
	return runtime.Convert_Slice_string_To_bool(&values, &is, nil) == nil && is
}

// isUpgrade reports whether r asks to switch protocols (RFC 9110 section 7.8).
func isUpgrade(r *http.Request) bool {
	return httpguts.HeaderValuesContainsToken(r.Header["Connection"], "Upgrade") && r.Header.Get("Upgrade") != ""
}

// call is one request on its way through the proxy.
type call struct {
	start time.Time
	// auditID names the call in logs: see auditIDOf.
	auditID string
	addr    netip.Addr // the peer
	caller  identity.Identity
	// groups are those in which the caller is impersonated, and narrowed says that they are
	// not all of its own: see narrow.
	groups   []string
	narrowed bool
	info     *apirequest.RequestInfo
	kind     Kind
	// ambient means that the client showed no token, as a browser does not: see
	// isolate.
	ambient bool
	// refused is the refusal that ended the call, if one did.
	refused *refusal
	// end ends the call with a cause; see calls.
	end func(cause error)
	// body is the body of a watch's response, once there is one.
	body atomic.Pointer[watchBody]
	// toRecord means that the call asks for a session, and its caller has recorders.
	toRecord bool
	// recording is what became of that.
	recording *sessionRecording
	// recorded says that a recorder records the session. A drain waits for it.
	recorded atomic.Bool
}

// verb returns the request's verb for metrics: one of the finite set that
// Kubernetes knows, so that a client cannot make up series.
func (c *call) verb() string {
	if c.info == nil {
		return "unknown"
	}
	switch v := c.info.Verb; v {
	case "get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "proxy",
		"head", "options", "post", "put":
		return v
	}
	return "other"
}

// escapes reports whether a decoded path has a segment that a server on the way may
// resolve, and so reach another path than the one that was classified, or leave the
// base path of the API server.
func escapes(path string) bool {
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}

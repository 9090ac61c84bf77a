// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package apiproxy

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"

	"github.com/tailhelm/tailhelm/internal/identity"
)

// Reasons of refusals: the values of the label "reason" of the refusals metric.
const (
	reasonUnknownPeer     = "unknown_peer"
	reasonExpired         = "expired"
	reasonNoName          = "no_name"
	reasonMalformedGrant  = "malformed_grant"
	reasonIdentityUnknown = "identity_unavailable"
	reasonIdentityChanged = "identity_changed"
	reasonImpersonation   = "impersonation_requested"
	reasonGroup           = "group_not_allowed"
	reasonCrossOrigin     = "cross_origin"
	reasonTooMany         = "too_many_requests"
	reasonRecorder        = "recorder_unavailable"
	reasonNoRecorder      = "no_recorder"
	reasonUnrecordable    = "not_recordable"
	reasonBadRequest      = "bad_request"
	reasonNotImpersonated = "not_impersonated"
	reasonCredentials     = "credentials_unavailable"
	reasonUpstream        = "apiserver_unreachable"
	reasonDraining        = "draining"
	reasonNotRecorded     = "not_recorded"
)

// reasons are all of them, so that their counters exist at 0.
var reasons = []string{
	reasonUnknownPeer, reasonExpired, reasonNoName, reasonMalformedGrant, reasonIdentityUnknown, reasonIdentityChanged, reasonImpersonation,
	reasonGroup, reasonCrossOrigin, reasonTooMany, reasonRecorder, reasonNoRecorder, reasonUnrecordable, reasonBadRequest, reasonNotImpersonated,
	reasonCredentials, reasonUpstream, reasonDraining, reasonNotRecorded,
}

// statusUpstreamSentence is what clients are told while the API server is away.
const statusUpstreamSentence = "The Kubernetes API server cannot be reached from the proxy. Try again; if it lasts, the readiness of the proxy (/readyz?verbose) and its log say why."

// refusal is an answer that the proxy gives itself. It is an error, so that it
// can be the cause that ends a call.
type refusal struct {
	label   string
	code    int
	reason  metav1.StatusReason
	message string
	cause   error // for the log only
	// retryAfter tells the client how many seconds to wait before it tries again. 0
	// tells it nothing. client-go's clients then try again by themselves.
	retryAfter int32
}

// Error returns the sentence that the client is told.
func (f *refusal) Error() string { return f.message }

// Unwrap returns the error behind the refusal, which the client is not told.
func (f *refusal) Unwrap() error { return f.cause }

// status returns f as Kubernetes says such things.
func (f *refusal) status() *metav1.Status {
	status := &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure,
		Code:     int32(f.code), //nolint:gosec // an HTTP status code
		Reason:   f.reason,
		Message:  f.message,
	}
	if f.retryAfter > 0 {
		status.Details = &metav1.StatusDetails{RetryAfterSeconds: f.retryAfter}
	}
	return status
}

func refuseUnauthorized(label, message string, cause error) *refusal {
	return &refusal{label: label, code: http.StatusUnauthorized, reason: metav1.StatusReasonUnauthorized, message: message, cause: cause}
}

func refuseForbidden(label, message string, cause error) *refusal {
	return &refusal{label: label, code: http.StatusForbidden, reason: metav1.StatusReasonForbidden, message: message, cause: cause}
}

func refuseUnavailable(label, message string, cause error) *refusal {
	return &refusal{label: label, code: http.StatusServiceUnavailable, reason: metav1.StatusReasonServiceUnavailable, message: message, cause: cause}
}

// refuseLeaving refuses what would be cut off soon, when clients are being sent to
// other replicas.
func refuseLeaving() *refusal {
	f := refuseUnavailable(reasonDraining, "This replica of the proxy is shutting down. Try again: another one will answer.", nil)
	f.retryAfter = 1
	return f
}

// refuseDraining refuses what would hold up or outlive a drain, when there may be no other
// replica.
func refuseDraining() *refusal {
	f := refuseUnavailable(reasonDraining, "The proxy is shutting down and starts no new sessions. Try again in a minute.", nil)
	f.retryAfter = 1
	return f
}

// refuseTooMany refuses a device that has as many of something under way as it may have.
func refuseTooMany(message string, cause error) *refusal {
	return &refusal{label: reasonTooMany, code: http.StatusTooManyRequests, reason: metav1.StatusReasonTooManyRequests, message: message, cause: cause}
}

func refuseBadRequest(message string, cause error) *refusal {
	return &refusal{label: reasonBadRequest, code: http.StatusBadRequest, reason: metav1.StatusReasonBadRequest, message: message, cause: cause}
}

// refuseIdentity turns an error of [Peers] into what the caller is told.
func refuseIdentity(err error) *refusal {
	var grant *identity.GrantError
	switch {
	case errors.Is(err, identity.ErrUnknownPeer):
		return refuseUnauthorized(reasonUnknownPeer, "The address of this connection belongs to no device of the tailnet. Connect from a device that is logged in to the tailnet, not through a subnet router or another proxy.", err)
	case errors.Is(err, identity.ErrExpired):
		return refuseUnauthorized(reasonExpired, "The node key of this device has expired. Log the device in to the tailnet again.", err)
	case errors.Is(err, identity.ErrNoName):
		return refuseUnauthorized(reasonNoName, fmt.Sprintf("The tailnet gives this device no name that Kubernetes can use: %v. Log the device in as a user, or tag it.", err), err)
	case errors.As(err, &grant):
		return refuseForbidden(reasonMalformedGrant, fmt.Sprintf("%v. Ask an administrator of the tailnet to correct the grant in the policy file.", grant), err)
	}
	return refuseUnavailable(reasonIdentityUnknown, "The proxy cannot find out who is calling. Try again; if it lasts, the log of the proxy says why.", err)
}

// isDiscovery reports whether r is client-go's question what the API server serves,
// which is what kubectl asks first. client-go looks for no Status in the answer, and
// would print "unknown"; it prints plain text.
func isDiscovery(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "as=APIGroupDiscoveryList")
}

// codecs encode a Status in the media types of the API server (JSON, YAML,
// protobuf, CBOR).
var codecs = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	scheme.AddUnversionedTypes(schema.GroupVersion{Version: "v1"}, &metav1.Status{})
	return serializer.NewCodecFactory(scheme)
}()

// write answers r with the refusal, in the media type that the client accepts,
// or in JSON when it accepts none that there is.
func (f *refusal) write(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-cache, private")
	if f.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(f.retryAfter)))
	}
	if isDiscovery(r) {
		http.Error(w, f.message, f.code)
		return nil
	}
	media := runtime.ContentTypeJSON
	info, _ := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), media)
	if _, negotiated, err := negotiation.NegotiateOutputMediaType(r, codecs, negotiation.DefaultEndpointRestrictions); err == nil {
		info, media = negotiated, negotiated.MediaType
	}
	body, err := runtime.Encode(codecs.EncoderForVersion(info.Serializer, schema.GroupVersion{Version: "v1"}), f.status())
	if err != nil {
		http.Error(w, f.message, f.code)
		return fmt.Errorf("encoding a Status as %s: %w", media, err)
	}
	w.Header().Set("Content-Type", media)
	w.WriteHeader(f.code)
	_, err = w.Write(body)
	return err
}

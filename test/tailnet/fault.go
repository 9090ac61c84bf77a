// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package tailnet

import (
	"cmp"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Paths for [Tailnet.Fail] and [Tailnet.Calls]. Any other path of the HTTP
// API may be used as well; the tailnet's name in it is always "-".
const (
	PathRegister      = "/machine/register"              // a device logs in
	PathMap           = "/machine/map"                   // a device gets its netmap
	PathSetDNS        = "/machine/set-dns"               // a device publishes an ACME challenge
	PathToken         = "/api/v2/oauth/token"            //nolint:gosec // OAuth client credentials: a path, no secret
	PathTokenExchange = "/api/v2/oauth/token-exchange"   //nolint:gosec // workload identity federation: a path, no secret
	PathKeys          = "/api/v2/tailnet/-/keys"         // auth keys
	PathDevices       = "/api/v2/tailnet/-/devices"      // list of devices
	PathDevice        = "/api/v2/device/"                // one device
	PathServices      = "/api/v2/tailnet/-/vip-services" // Tailscale Services: all, or one when its name follows
	PathAPI           = "/api/"                          // all of the HTTP API
	PathACME          = "/acme/"                         // the whole certificate authority
	PathACMEDirectory = "/acme/dir"                      // its directory, which every client reads first
	PathACMENewOrder  = "/acme/order-plz"                // orders of certificates
	PathACMEFinalize  = "/acme/finalize-order/"          // signing of certificates
)

// Fault is an error that a server of the tailnet makes on purpose.
type Fault struct {
	// Method limits the fault to one HTTP method; all if empty.
	Method string
	// Delay before the answer.
	Delay time.Duration
	// Status to answer with; 0 serves the request as usual, after Delay.
	Status int
	// Message of the error; the status in words if empty. It is given in the
	// form of the server at hand: text, the HTTP API's JSON, or an ACME problem.
	Message string
	// Problem is the type of an ACME problem, such as "rateLimited";
	// "serverInternal" if empty.
	Problem string
	// RetryAfter is sent as the header Retry-After, in seconds.
	RetryAfter time.Duration
	// Times is how many requests fail; 0 means all until the fault is cleared.
	Times int
}

// Fail makes requests fail whose path begins with path, for this tailnet's
// control server, HTTP API and certificate authority alike. When several
// faults match a request, the one set last applies. It returns a function
// that clears the fault.
//
// Tailscale's ACME client tries again by itself, for as long as its context
// lasts, when the authority answers 429 or 5xx; other errors it reports at once.
func (t *Tailnet) Fail(path string, f Fault) (restore func()) { return t.faults.add(path, f) }

// ClearFaults clears every fault.
func (t *Tailnet) ClearFaults() { t.faults.clear() }

// Calls counts the requests so far whose path begins with path, failed ones
// included.
func (t *Tailnet) Calls(path string) int { return t.faults.count(path) }

type activeFault struct {
	Fault
	path string
	left int
}

type faultTable struct {
	mu     sync.Mutex
	faults []*activeFault
	calls  map[string]int // by path
}

func newFaultTable() *faultTable { return &faultTable{calls: map[string]int{}} }

func (f *faultTable) add(path string, fault Fault) func() {
	a := &activeFault{Fault: fault, path: path, left: fault.Times}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, a)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.dropLocked(a)
	}
}

func (f *faultTable) dropLocked(a *activeFault) {
	for i, other := range f.faults {
		if other == a {
			f.faults = append(f.faults[:i:i], f.faults[i+1:]...)
			return
		}
	}
}

func (f *faultTable) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

func (f *faultTable) count(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for p, c := range f.calls {
		if strings.HasPrefix(p, path) {
			n += c
		}
	}
	return n
}

// note counts a request and returns the fault that applies to it, if any.
func (f *faultTable) note(method, path string) (Fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[path]++
	for i := len(f.faults) - 1; i >= 0; i-- {
		a := f.faults[i]
		if !strings.HasPrefix(path, a.path) || a.Method != "" && a.Method != method {
			continue
		}
		if a.left--; a.left == 0 {
			f.dropLocked(a)
		}
		return a.Fault, true
	}
	return Fault{}, false
}

// wrap puts the faults in front of h. name gives the path by which faults know
// a request's path.
func (f *faultTable) wrap(h http.Handler, name func(string) string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := name(r.URL.Path)
		fault, ok := f.note(r.Method, path)
		if !ok {
			h.ServeHTTP(w, r)
			return
		}
		if fault.Delay > 0 {
			select {
			case <-r.Context().Done():
				return
			case <-time.After(fault.Delay):
			}
		}
		if fault.Status == 0 {
			h.ServeHTTP(w, r)
			return
		}
		fault.write(w, path)
	})
}

// apiPath replaces the tailnet's name in a path of the API by "-".
func apiPath(path string) string {
	rest, ok := strings.CutPrefix(path, "/api/v2/tailnet/")
	if !ok {
		return path
	}
	_, rest, _ = strings.Cut(rest, "/")
	return "/api/v2/tailnet/-/" + rest
}

func (f Fault) write(w http.ResponseWriter, path string) {
	if f.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(f.RetryAfter.Round(time.Second).Seconds())))
	}
	message := cmp.Or(f.Message, http.StatusText(f.Status))
	switch {
	case strings.HasPrefix(path, PathACME):
		problem, err := json.Marshal(map[string]any{
			"type": "urn:ietf:params:acme:error:" + cmp.Or(f.Problem, "serverInternal"), "detail": message, "status": f.Status,
		})
		if err != nil {
			panic(err) // strings and numbers always encode
		}
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(f.Status)
		_, _ = w.Write(problem) // the client may be gone
	case strings.HasPrefix(path, PathAPI):
		writeAPIError(w, f.Status, message)
	default:
		http.Error(w, message, f.Status)
	}
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"

	"github.com/tailhelm/tailhelm/internal/kubeconfig"
)

// maxBody bounds what is read of an answer.
const maxBody = 1 << 20

// answer is what came back for a request.
type answer struct {
	code int
	// message is that of a Kubernetes Status, or empty.
	message string
	// apiServer says that the API server answered itself, and not the proxy.
	apiServer bool
	body      []byte
}

// refused reports whether the API server answered, and let the caller not do this.
func (a answer) refused() bool {
	return a.apiServer && (a.code == http.StatusUnauthorized || a.code == http.StatusForbidden)
}

// says is the answer in a sentence.
func (a answer) says() string {
	from := "the proxy"
	if a.apiServer {
		from = "the API server"
	}
	if a.message == "" {
		return fmt.Sprintf("HTTP status %d, without a message of Kubernetes", a.code)
	}
	return fmt.Sprintf("%s answers %d: %s", from, a.code, a.message)
}

// ask sends a request without credentials. A body that is not nil is sent as JSON.
func (r *run) ask(ctx context.Context, method, path string, body any) (answer, error) {
	if r.client == nil {
		if err := r.newClient(); err != nil {
			return answer{}, err
		}
	}
	var sent bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&sent).Encode(body); err != nil {
			return answer{}, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, r.target.URL()+path, &sent)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "tailhelm-doctor")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := r.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	a := answer{code: res.StatusCode, apiServer: res.Header.Get("Audit-Id") != "" && res.Header.Get("Tailhelm-Refused") == ""}
	if a.body, err = io.ReadAll(io.LimitReader(res.Body, maxBody)); err != nil {
		return answer{}, fmt.Errorf("reading the answer: %w", err)
	}
	var status metav1.Status
	if json.Unmarshal(a.body, &status) == nil && status.Kind == "Status" {
		a.message = status.Message
	}
	return a, nil
}

// newClient makes a client that follows no redirects: the API server answers at once.
func (r *run) newClient() error {
	config, err := r.tlsConfig()
	if err != nil {
		return err
	}
	r.client = &http.Client{
		Transport: &http.Transport{
			DialContext:       r.Dial,
			TLSClientConfig:   config,
			ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

// askVersion asks the API server for its version, as the first thing that needs the whole
// way.
func (r *run) askVersion(ctx context.Context) Step {
	a, err := r.ask(ctx, http.MethodGet, "/version", nil)
	if err != nil {
		return fail(fmt.Sprintf("no answer to GET /version: %v", err), "Try again. If it lasts, ask an administrator for the proxy's log.")
	}
	var info version.Info
	switch {
	case a.code == http.StatusOK && json.Unmarshal(a.body, &info) == nil && info.GitVersion != "":
		return ok("Kubernetes " + info.GitVersion)
	case a.refused(): // it is there, which is what this step is about
		return ok(a.says())
	case a.code == http.StatusPermanentRedirect:
		return fail("the proxy answers over https", "Leave out --http.")
	case a.message == "":
		return fail("GET /version: "+a.says(), fmt.Sprintf("Is %s the proxy? This is no answer of Kubernetes.", r.target.Host))
	}
	return fail(a.says(), "The message says what to do. docs/runbooks.md has more on each refusal.")
}

// askIdentity asks the API server who the caller is to it.
func (r *run) askIdentity(ctx context.Context) Step {
	review := &authenticationv1.SelfSubjectReview{TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "SelfSubjectReview"}}
	a, err := r.ask(ctx, http.MethodPost, "/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
	if err != nil {
		return fail(fmt.Sprintf("no answer to a SelfSubjectReview: %v", err), "Try again. If it lasts, ask an administrator for the proxy's log.")
	}
	// In mode auth, every caller has a name: a proxy that is not let in says so itself.
	if r.noauth = a.refused() && (a.code == http.StatusUnauthorized || strings.Contains(a.message, "system:anonymous")); r.noauth {
		return Step{Status: NotTried, Found: "the proxy is in mode noauth: the credentials in your kubeconfig decide", Advice: "See who you are: kubectl auth whoami."}
	}
	if a.code != http.StatusCreated || json.Unmarshal(a.body, review) != nil {
		return fail(a.says(), "The message says what to do. docs/runbooks.md has more on each refusal.")
	}
	who := review.Status.UserInfo
	groups := slices.DeleteFunc(slices.Clone(who.Groups), func(g string) bool { return g == "system:authenticated" })
	s := ok(fmt.Sprintf("you are %s, in the groups %s", who.Username, strings.Join(groups, ", ")))
	if len(groups) == 0 {
		s.Found = fmt.Sprintf("you are %s, in no group of a grant", who.Username)
		s.Advice = "You can do what roles allow your name. For more, ask an administrator for a grant with \"app\": {\"tailscale.com/cap/kubernetes\": ...} from you to the proxy."
	}
	return s
}

// readKubeconfig finds the context that leads to the proxy. err is that of reading the file.
func (r *run) readKubeconfig(err error) Step {
	if err != nil {
		return fail(fmt.Sprintf("the kubeconfig cannot be read: %v", err), "Correct the file.")
	}
	if r.target.Short() {
		return Step{Status: NotTried}
	}
	write := "tailhelm kubeconfig " + r.target.Host
	if r.target.Scheme == "http" {
		write += " --http"
	}
	if r.noauth {
		write += " --mode=noauth"
	}
	context := r.target.Context(r.config)
	switch {
	case context == "":
		return Step{Status: NotTried, Found: "no context leads to " + r.target.URL(), Advice: "Make one: " + write + "."}
	case r.noauth && kubeconfig.UnusedToken(r.config, context):
		return fail(fmt.Sprintf("the context %q has the token \"unused\", which the API server refuses", context), "Take it out: "+write+".")
	case context != r.config.CurrentContext:
		return Step{Status: OK, Found: fmt.Sprintf("the context %q leads to it, and is not the current one", context), Advice: "Use it: kubectl config use-context " + context + "."}
	}
	return ok(fmt.Sprintf("the current context %q leads to it", context))
}

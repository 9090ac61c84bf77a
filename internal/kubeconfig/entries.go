// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package kubeconfig

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

const (
	// sharedUser is the user of all proxies in mode auth.
	sharedUser = "tailscale-auth"
	// unused is its token. A proxy in mode auth ignores it, and kubectl would ask for a
	// password without one. The API server refuses it, so a proxy in mode noauth must not
	// be sent it.
	unused = "unused"
)

// Entries are what to write for a proxy.
type Entries struct {
	// Target has the full name.
	Target Target
	// NoAuth says that the proxy is in mode noauth: clients have credentials of their own.
	NoAuth bool
	// Context is the name of the context. If empty, it is the proxy's full name.
	Context string
	// Namespace is that of the context. If empty, the context keeps the one it has.
	Namespace string
	// As is the caller itself and Groups those of its groups to work with. Without groups
	// it works with all that it has.
	As     string
	Groups []string
	// SetCurrent makes the context the current one.
	SetCurrent bool
}

// Written says what the entries are in a kubeconfig.
type Written struct {
	// Context and Cluster are the entries' names.
	Context, Cluster string
	// User is the name of the context's user, or empty if it has none.
	User string
	// UserMissing says that the kubeconfig has no entry for User.
	UserMissing bool
	// File is where the context is. It is empty for [Render].
	File string
}

// Write changes the kubeconfig of paths.
func Write(paths *clientcmd.PathOptions, e Entries) (Written, error) {
	config, err := paths.GetStartingConfig()
	if err != nil {
		return Written{}, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	written := e.apply(config)
	if written.File = config.Contexts[written.Context].LocationOfOrigin; written.File == "" {
		written.File = paths.GetDefaultFilename()
	}
	if err := clientcmd.ModifyConfig(paths, *config, true); err != nil {
		return Written{}, fmt.Errorf("writing the kubeconfig: %w", err)
	}
	return written, nil
}

// Render returns a kubeconfig with the entries and nothing else, as YAML.
func Render(e Entries) ([]byte, Written, error) {
	config := clientcmdapi.NewConfig()
	written := e.apply(config)
	b, err := clientcmd.Write(*config)
	if err != nil {
		return nil, Written{}, fmt.Errorf("encoding the kubeconfig: %w", err)
	}
	return b, written, nil
}

// apply puts the entries into config. What other entries and fields hold, stays: a CA, a
// namespace, credentials.
func (e Entries) apply(config *clientcmdapi.Config) Written {
	w := Written{Context: e.Context, Cluster: e.Target.Host}
	if w.Context == "" {
		w.Context = e.Target.Host
	}
	cluster := config.Clusters[w.Cluster]
	if cluster == nil {
		cluster = clientcmdapi.NewCluster()
		config.Clusters[w.Cluster] = cluster
	}
	cluster.Server = e.Target.URL()
	context := config.Contexts[w.Context]
	if context == nil {
		context = clientcmdapi.NewContext()
		config.Contexts[w.Context] = context
	}
	if e.NoAuth {
		context.AuthInfo = keepUser(config, context)
	} else {
		context.AuthInfo = e.setUser(config, w.Context)
	}
	context.Cluster = w.Cluster
	if e.Namespace != "" {
		context.Namespace = e.Namespace
	}
	if e.SetCurrent {
		config.CurrentContext = w.Context
	}
	w.User = context.AuthInfo
	w.UserMissing = w.User != "" && config.AuthInfos[w.User] == nil
	return w
}

// keepUser returns the user that a context has, or "" if it has none or one whose token no
// API server accepts.
func keepUser(config *clientcmdapi.Config, context *clientcmdapi.Context) string {
	if user := config.AuthInfos[context.AuthInfo]; user != nil && user.Token == unused {
		return ""
	}
	return context.AuthInfo
}

// setUser makes an entry for mode auth and returns its name. It is the shared one, except
// for fewer groups, and where the shared one was given credentials, as people do for mode
// noauth: those are not lost, nor sent to a proxy that needs none.
func (e Entries) setUser(config *clientcmdapi.Config, context string) string {
	user := clientcmdapi.NewAuthInfo()
	user.Token = unused
	name := sharedUser
	if len(e.Groups) > 0 {
		user.Impersonate, user.ImpersonateGroups = e.As, e.Groups
		name += "-" + context
	} else if old := config.AuthInfos[name]; old != nil {
		if isShared(old) {
			return name // its file needs no change
		}
		name += "-" + context
	}
	if old := config.AuthInfos[name]; old != nil {
		user.LocationOfOrigin, user.Extensions = old.LocationOfOrigin, old.Extensions
	}
	config.AuthInfos[name] = user
	return name
}

// isShared reports whether user holds the token "unused" and nothing else.
func isShared(user *clientcmdapi.AuthInfo) bool {
	bare := user.DeepCopy()
	bare.LocationOfOrigin, bare.Extensions = "", nil
	return equality.Semantic.DeepEqual(bare, &clientcmdapi.AuthInfo{Token: unused})
}

// UnusedToken reports whether the user of a context has the token that only proxies in mode
// auth take.
func UnusedToken(config *clientcmdapi.Config, context string) bool {
	c := config.Contexts[context]
	if c == nil {
		return false
	}
	user := config.AuthInfos[c.AuthInfo]
	return user != nil && user.Token == unused
}

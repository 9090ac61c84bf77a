// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Package binary builds a program from pinned Go modules and keeps the result.
//
// Tests need real programs: kube-apiserver, etcd, kubectl, helm. A download of
// release files needs hosts that many networks do not let through, and a container
// image needs a container engine. Go modules need neither: whoever can build this
// project can build those programs, and go.sum says that they are the right ones.
//
// # A module
//
// A [Module] is a go.mod and a go.sum, kept by the package that needs the program
// and embedded as <name>.mod and <name>.sum: a folder with a file named go.mod
// would be a module of its own, out of reach of go:embed. The go.mod names the
// program in a tool directive, so that "go mod tidy" keeps its requirements. To
// move to another version, copy both files to go.mod and go.sum in an empty folder,
// edit, run "go mod tidy" there and copy them back. A module may have a main package
// of its own, embedded as <name>.main: it takes the place of the tool directive.
//
// # The cache
//
// Programs lie in $TAILHELM_CACHE, or else in the folder tailhelm of
// [os.UserCacheDir]. The name of an entry holds a hash of everything that goes
// into the build: go.mod, go.sum, a main package of the module's own, the package,
// linker flags, Go's version, GOOS and GOARCH. So an entry is never wrong, only unused;
// after a build, entries of the same program that nobody has used for 30 days are
// removed. Removing the whole folder is always safe.
//
// A file lock lets concurrent processes, as "go test ./..." starts them, build a
// program once. Go's own build cache is shared too, so that a second program of the
// same module takes a fraction of the first one's time.
//
// # Trade-offs
//
// Building costs minutes once per machine. It is quiet: one line when a build
// starts and one when it ends, on standard error, and nothing when the program is
// in the cache. GOFLAGS and go.work of the caller do not count, because they speak
// of another module; GOPROXY, GOCACHE, GOMODCACHE and GOTOOLCHAIN do.
//
// Programs are static (CGO_ENABLED=0) and built with -trimpath. The package works on
// Unix: it locks with flock.
package binary

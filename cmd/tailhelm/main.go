// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

// Command tailhelm is the API server proxy of a tailnet: see internal/cli.
package main

import (
	"os"

	"github.com/tailhelm/tailhelm/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

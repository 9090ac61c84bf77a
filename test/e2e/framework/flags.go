// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"flag"
	"runtime"
	"time"
)

// Flags of the tests, after "-args".
var (
	clusterName = flag.String("cluster", "tailhelm-e2e", "name of the kind cluster")
	reuse       = flag.Bool("reuse", false, "use the cluster if it is there")
	keep        = flag.Bool("keep", false, "leave the cluster running")
	nodeImage   = flag.String("node-image", "", "node image of kind; kind's published one if empty")
	image       = flag.String("image", "../../.bin/e2e-images/tailhelm-"+runtime.GOARCH+".tar", "archive of the image of tailhelm")
	patience    = flag.Duration("patience", 5*time.Minute, "how long to wait for anything; only a test that fails waits so long")
	copySize    = flag.Int64("copy-size", 100<<20, "how many bytes kubectl cp moves in each direction")
	artifacts   = flag.String("artifacts", "../../.bin/e2e", "folder for what failed tests leave behind")
)

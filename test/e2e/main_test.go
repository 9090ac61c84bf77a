// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"testing"

	"github.com/tailhelm/tailhelm/test/e2e/framework"
)

// suite is what all tests share.
var suite *framework.Suite

func TestMain(m *testing.M) { os.Exit(framework.Run(m, &suite)) }

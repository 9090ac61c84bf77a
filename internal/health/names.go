// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package health

// Names of checks. Replicas report them to the operator, and alerts name them.
const (
	CheckPing         = "ping"
	CheckShutdown     = "shutdown"
	CheckTailnet      = "tailnet"
	CheckCertificate  = "certificate"
	CheckAPIServer    = "apiserver"
	CheckImpersonator = "impersonator"
	CheckListening    = "listening"
	CheckService      = "service"
	CheckDisk         = "disk"
	CheckName         = "name"
	CheckControllers  = "controllers"
	CheckTailscaleAPI = "tailscaleapi"
)

// Order are the checks of a replica in the order in which it comes up: while one fails,
// those behind it say little.
var Order = []string{
	CheckShutdown, CheckTailnet, CheckCertificate, CheckAPIServer, CheckImpersonator, CheckDisk, CheckListening, CheckService,
}

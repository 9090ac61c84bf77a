// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"log/slog"
	"time"
)

// logInterval is how often Log looks for warnings. They are about what breaks in hours.
const logInterval = 30 * time.Second

// Log logs warnings of checks when they begin, change, and end, until ctx is done. What
// fails is logged by those who know more about it.
func Log(ctx context.Context, log *slog.Logger, checks ...Check) {
	tick := time.NewTicker(logInterval)
	defer tick.Stop()
	last := make([]string, len(checks))
	for {
		for i, r := range Run(ctx, checks...) {
			now := ""
			if r.Warning != nil {
				now = r.Warning.Error()
			}
			switch {
			case ctx.Err() != nil:
				return
			case now == last[i]:
				continue
			case now != "":
				log.WarnContext(ctx, "a readiness check warns", "check", checks[i].Name, "warning", now)
			default:
				log.InfoContext(ctx, "a readiness check does not warn any more", "check", checks[i].Name)
			}
			last[i] = now
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

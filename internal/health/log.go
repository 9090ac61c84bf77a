// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"log/slog"
	"time"
)

const (
	// logInterval is how often Log looks for warnings. They are about what breaks in hours.
	logInterval = 30 * time.Second
	// logAgain is how often a warning is logged whose words change, as figures in them do.
	logAgain = time.Hour
)

// Log logs warnings of checks when they begin and end, and in between when they change, until
// ctx is done. What fails is logged by those who know more about it.
func Log(ctx context.Context, log *slog.Logger, checks ...Check) {
	tick := time.NewTicker(logInterval)
	defer tick.Stop()
	last, told := make([]string, len(checks)), make([]time.Time, len(checks))
	for {
		for i, r := range Run(ctx, checks...) {
			now := ""
			if r.Warning != nil {
				now = r.Warning.Error()
			}
			switch {
			case ctx.Err() != nil:
				return
			case now == last[i], now != "" && last[i] != "" && time.Since(told[i]) < logAgain:
				continue
			case now != "":
				log.WarnContext(ctx, "a readiness check warns", "check", checks[i].Name, "warning", now)
			default:
				log.InfoContext(ctx, "a readiness check does not warn any more", "check", checks[i].Name)
			}
			last[i], told[i] = now, time.Now()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

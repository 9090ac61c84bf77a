// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of what people are told. Replicas, the tailnet and other controllers say what
// goes into it, and the API server refuses a status or an event that is too long.
const (
	// maxMessage is for a condition, in bytes. The API server takes 32 KiB.
	maxMessage = 4 << 10
	// maxNote is for an event. The API server takes 1 KiB.
	maxNote = 1 << 10
	// maxReason is for what one replica says.
	maxReason = 400
	// maxListed is how many different things, or things of a kind, are listed.
	maxListed = 5
	// maxChecks is how many failing checks of a replica are looked at.
	maxChecks = 16
	// maxReport is for all that a replica says of its checks.
	maxReport = 32 << 10
)

// plain returns text as one line that a terminal can show, of at most limit bytes. What is
// left out is counted.
func plain(text string, limit int) string {
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "\uFFFD"), func(r rune) bool {
		return unicode.IsSpace(r) || !unicode.IsPrint(r)
	}), " ")
	if len(text) <= limit {
		return text
	}
	rest := fmt.Sprintf("... (%d bytes more)", len(text)) // at least as long as what is put there
	end := max(0, limit-len(rest))
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + fmt.Sprintf("... (%d bytes more)", len(text)-end)
}

// checkName is the form of a check's name.
var checkName = regexp.MustCompile(`^[a-z][a-z-]{0,30}$`)

// tally is what is to be said of replicas. Replicas of which the same is to be said are
// named together.
type tally struct {
	reasons  []string // in the order in which they came
	ordinals map[string][]int
}

// add notes what is to be said of a replica. Ordinals come in ascending order.
func (t *tally) add(ordinal int, reason string) {
	reason = plain(reason, maxReason)
	if t.ordinals == nil {
		t.ordinals = map[string][]int{}
	}
	if !slices.Contains(t.reasons, reason) {
		t.reasons = append(t.reasons, reason)
	}
	t.ordinals[reason] = append(t.ordinals[reason], ordinal)
}

// String says it: "replica 0: ...; replicas 1-149: ...".
func (t *tally) String() string {
	var parts []string
	left := 0
	for i, reason := range t.reasons {
		if of := t.ordinals[reason]; i < maxListed {
			parts = append(parts, replicaNames(of)+": "+reason)
		} else {
			left += len(of)
		}
	}
	if left > 0 {
		parts = append(parts, fmt.Sprintf("and %d more replicas", left))
	}
	return strings.Join(parts, "; ")
}

// replicaNames names replicas by their ascending numbers: "replicas 0-2, 5 and 3 more".
func replicaNames(ordinals []int) string {
	if len(ordinals) == 1 {
		return fmt.Sprintf("replica %d", ordinals[0])
	}
	var runs []string
	for i := 0; i < len(ordinals); {
		if len(runs) == maxListed {
			return fmt.Sprintf("replicas %s and %d more", strings.Join(runs, ", "), len(ordinals)-i)
		}
		end := i
		for end+1 < len(ordinals) && ordinals[end+1] == ordinals[end]+1 {
			end++
		}
		run := fmt.Sprint(ordinals[i])
		if end > i {
			run += fmt.Sprintf("-%d", ordinals[end])
		}
		runs = append(runs, run)
		i = end + 1
	}
	return "replicas " + strings.Join(runs, ", ")
}

// listed joins names, the first of them when there are many.
func listed(names []string) string {
	if len(names) <= maxListed+1 {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:maxListed], ", "), len(names)-maxListed)
}

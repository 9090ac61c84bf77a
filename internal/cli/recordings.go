// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/tailhelm/tailhelm/internal/recorder"
)

func newRecorderList(o *recorderOptions) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the recordings in a folder, the oldest first",
		Args:  noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.checkDir(); err != nil {
				return err
			}
			list, err := recorder.List(o.dir)
			if err != nil {
				return err
			}
			return printRecordings(c.OutOrStdout(), o.dir, list)
		},
	}
}

// printRecordings prints a table. What a caller chose is quoted.
func printRecordings(w io.Writer, dir string, list []recorder.Info) error {
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "STARTED\tWHO\tFROM\tWHAT\tPOD\tCOMMAND\tBYTES\tWHOLE\tFILE") // Flush tells of an error
	for _, info := range list {
		h := info.Header
		started, kind, pod, who := "?", "?", "?", h.SrcNodeUser
		if h.Timestamp != 0 {
			started = time.Unix(h.Timestamp, 0).UTC().Format(time.RFC3339)
		}
		if k := h.Kubernetes; k != nil {
			kind, pod = k.SessionType, k.Namespace+"/"+k.PodName
		}
		if who == "" {
			who = strings.Join(h.SrcNodeTags, ",")
		}
		file, err := filepath.Rel(dir, info.Path)
		if err != nil {
			file = info.Path
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%q\t%d\t%t\t%s\n", started, plain(who), plain(h.SrcNode), plain(kind), plain(pod), h.Command, info.Bytes, info.Whole, plain(file))
	}
	return table.Flush()
}

// plain returns s, quoted if a terminal would make more of it than text.
func plain(s string) string {
	if s == "" {
		return "-"
	}
	if quoted := fmt.Sprintf("%q", s); quoted[1:len(quoted)-1] != s {
		return quoted
	}
	return s
}

func newRecorderPlay(r *recorderOptions) *cobra.Command {
	var o recorder.PlayOptions
	c := &cobra.Command{
		Use:   "play FILE",
		Short: "Play a recording in this terminal",
		Long: "Play a recording in this terminal: FILE is a path, with --dir one in that folder, as list names it. The terminal does what the session's did: a program in a\n" +
			"container chose those bytes. Use a terminal that is not better than that.",
		Args: oneRecording,
		RunE: func(c *cobra.Command, args []string) error {
			if o.Speed < 0 {
				return badSetting("--speed", fmt.Sprint(o.Speed), "give a number above 0, or 0 for at once")
			}
			if o.Idle < 0 {
				return badSetting("--idle", o.Idle.String(), "give a duration, for example 2s, or 0 for pauses as they were")
			}
			f, err := r.openRecording(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			return recorder.Play(c.Context(), c.OutOrStdout(), f, o)
		},
	}
	c.Flags().Float64Var(&o.Speed, "speed", 1, "how many times as fast as the session; 0 means at once")
	c.Flags().DurationVar(&o.Idle, "idle", 2*time.Second, "how long a pause gets at most; 0 means as long as it was")
	return c
}

// oneRecording refuses all arguments except for one file.
func oneRecording(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return &settingError{"give the file of one recording"}
	}
	return nil
}

// openRecording opens a recording: path, with --dir one in that folder, as list names it.
func (o *recorderOptions) openRecording(path string) (*os.File, error) {
	if o.dir != "" && !filepath.IsAbs(path) {
		path = filepath.Join(o.dir, path)
	}
	return os.Open(path) //nolint:gosec // whoever runs the command names the file
}

func newRecorderCat(r *recorderOptions) *cobra.Command {
	return &cobra.Command{
		Use:   "cat FILE",
		Short: "Write a recording to the standard output, as it is",
		Long: "Write a recording to the standard output, as it is, to keep it elsewhere: images have no cat and no tar. FILE is a path, with --dir one in\n" +
			"that folder, as list names it. Write it to a file: a program in a container chose what is in it.",
		Args: oneRecording,
		RunE: func(c *cobra.Command, args []string) error {
			f, err := r.openRecording(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			_, err = io.Copy(c.OutOrStdout(), f)
			return err
		},
	}
}

func newRecorderEvents(r *recorderOptions) *cobra.Command {
	var since time.Duration
	c := &cobra.Command{
		Use:   "events",
		Short: "Write the events of requests to the standard output, a JSON object a line",
		Long: "Write the events of requests in a folder to the standard output, a JSON object a line: day by day and device by device. Their order in time is that of\n" +
			"their fields \"timestamp\", in seconds since 1970. Write them to a file, or to a program that reads JSON: callers chose what is in them.",
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := r.checkDir(); err != nil {
				return err
			}
			if since < 0 {
				return badSetting("--since", since.String(), "give a duration, for example 24h, or 0 for all")
			}
			from := time.Time{}
			if since > 0 {
				from = time.Now().Add(-since)
			}
			return recorder.CopyEvents(c.OutOrStdout(), r.dir, from)
		},
	}
	c.Flags().DurationVar(&since, "since", 0, "how old an event may be, for example 24h; 0 means as old as there are")
	return c
}

// Copyright The Tailhelm Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit statuses.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// environment looks up environment variables.
type environment func(name string) string

// Main runs the command line args (without the program's name) and returns the
// exit status: 0, 1 for a failure, 2 for wrong configuration. SIGTERM and SIGINT
// end a running command gracefully; a second one ends it at once.
func Main(args, environ []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop)
	root := newRoot(lookup(environ), stderr)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	_, _ = fmt.Fprintf(stderr, "tailhelm: %v\n", err)
	var setting *settingError
	if errors.As(err, &setting) {
		return exitUsage
	}
	return exitFailure
}

func newRoot(env environment, logs io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:           "tailhelm",
		Short:         "Reach a Kubernetes API server over a tailnet, as yourself",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArguments,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &settingError{err.Error()} })
	root.AddCommand(newOperator(env, logs), newProxy(env, logs), newRecorder(env, logs), newCleanup(env, logs), newVersion())
	root.AddCommand(newKubeconfig(), newDoctor())
	return root
}

// noArguments refuses arguments that are no flags, as wrong configuration.
func noArguments(c *cobra.Command, args []string) error {
	if err := cobra.NoArgs(c, args); err != nil {
		return &settingError{err.Error()}
	}
	return nil
}

// lookup returns the lookup of an environment in the form of os.Environ.
func lookup(environ []string) environment {
	values := make(map[string]string, len(environ))
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		values[name] = value
	}
	return func(name string) string { return values[name] }
}

// settingError is configuration that is wrong.
type settingError struct{ message string }

func (e *settingError) Error() string { return e.message }

// badSetting returns the error for a setting (a flag or an environment variable):
// its name, its value and what to do instead.
func badSetting(name, value, instead string) error {
	return &settingError{fmt.Sprintf("%s=%q: %s", name, value, instead)}
}

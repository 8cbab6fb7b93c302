// Package cli is the command line: one file per noun. It runs in the
// controller process, before there is a session, and decides nothing itself:
// it reads flags and files, calls the room that knows, and prints.
//
// Standard output is only the answer; notices, progress and errors go to
// standard error. Exit codes are those of package vocabulary.
package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// Main runs the command line and returns the exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	if err == nil {
		return 0
	}
	var exit *exitStatus
	if errors.As(err, &exit) {
		return exit.code
	}
	code := vocabulary.ExitBulkheadFailed
	var coded *vocabulary.ExitError
	var invalid policy.ErrorList
	switch {
	case errors.As(err, &coded):
		code = coded.Code
	case errors.As(err, &invalid):
		code = vocabulary.ExitPolicyInvalid
		fmt.Fprintln(stderr, "bulkhead: the policy is invalid; nothing was started")
		fmt.Fprintln(stderr, invalid.Error())
		return code
	}
	fmt.Fprintln(stderr, "bulkhead: "+strings.TrimRight(err.Error(), "\n"))
	return code
}

// exitStatus passes a contained command's own code through cobra in silence.
type exitStatus struct{ code int }

func (e *exitStatus) Error() string { return fmt.Sprintf("exit status %d", e.code) }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "bulkhead",
		Short: "Run AI agents inside a boundary that does not depend on anyone's intent",
		Long: `Bulkhead runs an agent, or any command, where it can reach its workspace and the
operations you granted, and nothing else: no other files, no network, no secrets.

  bulkhead run --preset claude -- claude     Claude Code, contained
  bulkhead run -- bash                       a shell with no network at all
  bulkhead doctor                            what this host can give
  bulkhead policy explain GET https://…      would it be allowed, and by which rule

Exit codes: the command's own; 10 policy invalid, 11 refused before start,
12 this host cannot give the isolation asked for, 125 Bulkhead failed,
126 cannot execute, 127 not found, 128+n ended by signal n.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(
		newRun(), newExec(), newPolicy(), newPreset(), newService(), newGrant(), newCredential(), newTrust(), newWorkspace(), newImage(), newSession(), newEvent(),
		newRedteam(), newDoctor(), newVersion(),
	)
	return root
}

// noun groups verbs; alone it shows them and fails, so that a typo in a script
// is noticed.
func noun(name, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   name,
		Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%s has no verb %q; see: bulkhead %s --help", name, args[0], name)
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	c.AddCommand(verbs...)
	return c
}

func printJSON(cmd *cobra.Command, v any) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0 && isatty(f)
}

func saveJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o600)
}

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
	"os/exec"
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
	cmd, err := root.ExecuteC()
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
		fmt.Fprintln(stderr, "bulkhead: the policy is invalid"+nothingStarted(cmd))
		fmt.Fprintln(stderr, invalid.Error())
		return code
	}
	fmt.Fprintln(stderr, "bulkhead: "+strings.TrimRight(err.Error(), "\n"))
	return code
}

// nothingStarted is said where something was to be started.
func nothingStarted(cmd *cobra.Command) string {
	if cmd.Name() == "run" {
		return "; nothing was started"
	}
	return ""
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
		Version:           version(),
		Args:              cobra.ArbitraryArgs,
		RunE:              unknownCommand,

		SuggestionsMinimumDistance: 2,
	}
	root.Flags().SetInterspersed(false) // the rest of an unknown command is not ours
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w\nsee: %s --help", err, cmd.CommandPath())
	})
	root.AddCommand(
		newRun(), newExec(), newPolicy(), newPreset(), newService(), newGrant(), newCredential(), newTrust(), newWorkspace(), newImage(), newSession(), newEvent(),
		newRedteam(), newDoctor(), newVersion(),
	)
	teachArgs(root)
	return root
}

func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	next := "see: bulkhead --help"
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		next = "did you mean: bulkhead " + near[0]
	} else if _, err := exec.LookPath(args[0]); err == nil {
		next = "to run it contained: bulkhead run -- " + strings.Join(args, " ")
	}
	return fmt.Errorf("there is no command %q\n%s", args[0], next)
}

// ownWords is what a command says itself about its arguments.
type ownWords string

func (w ownWords) Error() string { return string(w) }

// teachArgs has every command that is called with too few or too many words say
// how it is called.
func teachArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err == nil || errors.As(err, new(ownWords)) {
				return err
			}
			return fmt.Errorf("%s: wrong number of arguments (%d)\nwrite: %s\nsee: %s --help",
				strings.TrimPrefix(cmd.CommandPath(), "bulkhead "), len(args), strings.TrimSuffix(cmd.UseLine(), " [flags]"), cmd.CommandPath())
		}
	}
	for _, sub := range c.Commands() {
		teachArgs(sub)
	}
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

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/session"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func newRun() *cobra.Command {
	var src policySource
	var events, trusting, resume string
	c := &cobra.Command{
		Use:   "run [flags] -- CMD [ARGS…]",
		Short: "Run a command in a new session",
		Long: `Run a command in a new session.

The command starts in the workspace (default: this folder), which has the same path
inside as outside. It sees the system directories read-only, an empty private home, and
what the presets and the policy add. It has no network but the operations granted.

Configuration of the project that runs something (agents' settings, hooks, MCP servers,
editors' tasks …) is hidden until you trust the folder; see: bulkhead trust show.

Without --policy your own policy is used if there is one (see: bulkhead policy show),
otherwise the profile's defaults: the workspace and nothing else.`,
		Example: `  bulkhead run --preset claude -- claude
  bulkhead run --preset claude,go,git -- claude -p "fix the tests"
  bulkhead run --workspace ~/src/app:ro -- grep -r TODO .`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("no command; for example: bulkhead run -- bash")
			}
			if args[0] == "" {
				return vocabulary.Exitf(vocabulary.ExitNotFound, "the command's name is empty; nothing was started")
			}
			session.HoldGarbage()
			p, err := src.load()
			if err != nil {
				return err
			}
			layer, err := resumed(p, resume, src.workspace)
			if err != nil {
				return err
			}
			if hint := agentHint(p, args[0]); hint != "" {
				notice(cmd)("%s", hint)
			}
			cat, err := services()
			if err != nil {
				return err
			}
			how, err := trustFor(cmd, trusting)
			if err != nil {
				return err
			}
			if off := switches.Taken(); len(off) > 0 {
				notice(cmd)("this is a test build without: %s", strings.Join(off, ", "))
			}
			code, err := session.Run(context.Background(), session.Options{
				Policy: p, Catalog: cat, Services: loadServices().extra, Config: configDir(), Argv: args, Events: events, Trust: how, Resume: layer,
				Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
				Notice: notice(cmd),
			})
			if err != nil {
				return hiddenCommand(err, p, args[0])
			}
			return &exitStatus{code}
		},
	}
	c.Flags().SetInterspersed(false)
	src.flags(c.Flags())
	c.Flags().StringVar(&events, "events", "", "write the session's events to `FILE` (default: a file of its own, see: bulkhead event tail)")
	c.Flags().StringVar(&trusting, "trust", "ask", "project configuration that is not trusted: `HOW` is ask (if there is a terminal), no, or the digest to trust for this run")
	c.Flags().StringVar(&resume, "resume", "", "go on with the staged changes of `SESSION`, see: bulkhead workspace list")
	return c
}

// notice prints a line for the person, told apart from the command's own words.
func notice(cmd *cobra.Command) func(format string, args ...any) {
	return func(format string, args ...any) {
		text := strings.ReplaceAll(strings.TrimRight(fmt.Sprintf(format, args...), "\n"), "\n", "\nbulkhead:   ")
		fmt.Fprintln(cmd.ErrOrStderr(), "bulkhead: "+text)
	}
}

func newExec() *cobra.Command {
	c := &cobra.Command{
		Use:   "exec SESSION -- CMD [ARGS…]",
		Short: "Run another command inside a running session",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return errors.New("a session and a command are needed: bulkhead exec SESSION -- CMD (see: bulkhead session list)")
			}
			r, err := findSession(args[0])
			if err != nil {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%v", err)
			}
			argv := args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return errors.New("no command; for example: bulkhead exec " + args[0] + " -- bash")
			}
			code, err := session.Exec(context.Background(), r, argv, os.Stdin, os.Stdout, os.Stderr)
			if err != nil {
				return err
			}
			return &exitStatus{code}
		},
	}
	c.Flags().SetInterspersed(false)
	return c
}

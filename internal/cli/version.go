package cli

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bulkhead-dev/bulkhead/internal/switches"
)

func isatty(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version())
			return err
		},
	}
}

func version() string {
	version := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
	}
	if off := switches.Taken(); len(off) > 0 {
		version += " (TEST BUILD WITHOUT: " + strings.Join(off, ", ") + ")"
	}
	return fmt.Sprintf("bulkhead %s %s/%s %s", version, runtime.GOOS, runtime.GOARCH, runtime.Version())
}

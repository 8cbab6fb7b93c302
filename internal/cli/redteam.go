package cli

import (
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/redteam"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/obedient"
)

func newRedteam() *cobra.Command {
	return noun("redteam", "Attack your own sessions and see what comes of it",
		redteamList(), redteamRun(), redteamReport(), redteamAgent())
}

func redteamList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the attacks and where each can run",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			for _, a := range redteam.Attacks() {
				fmt.Fprintf(w, "%s\t%s\n", a.Name, a.Title)
			}
			for _, v := range redteam.Variants() {
				fmt.Fprintf(w, "  %s\t%s\n", v.Name, v.Title)
			}
			return w.Flush()
		},
	}
}

func redteamRun() *cobra.Command {
	var runs int
	var tier, save string
	var variants []string
	var asJSON bool
	c := &cobra.Command{
		Use:   "run phish",
		Short: "Run an attack many times, with and without Bulkhead, and count",
		Long: `Run an attack many times, with and without Bulkhead, and count.

phish: a pasted prompt makes an obedient agent read ~/.aws/credentials, encode it and
post it to a collector. Everything is made for the run and stays on this machine: the
home, the secret, the model, the thief. Success is judged only by what the thief got.`,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"phish"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			binary, err := childproc.Path()
			if err != nil {
				return err
			}
			progress, finish := redteam.ProgressLine(os.Stderr, isTerminal(os.Stderr))
			report, err := redteam.Phish(cmd.Context(), redteam.Config{
				Runs: runs, Tier: tier, Variants: variants,
				Agent: redteam.ObedientAgent(binary), RunSession: redteam.Runner(binary), Progress: progress,
			})
			finish()
			if err != nil {
				return err
			}
			if save != "" {
				if err := saveJSON(save, report); err != nil {
					return err
				}
			}
			if asJSON {
				err = printJSON(cmd, report)
			} else {
				err = report.WriteTable(cmd.OutOrStdout(), isTerminal(os.Stdout))
			}
			if err == nil && !report.OK {
				err = &exitStatus{1}
			}
			return err
		},
	}
	c.Flags().IntVar(&runs, "runs", 25, "how often each variant runs")
	c.Flags().StringVar(&tier, "tier", "", "only this `TIER`: none or process (default: both)")
	c.Flags().StringSliceVar(&variants, "variant", nil, "only these variants (see: bulkhead redteam list)")
	c.Flags().StringVar(&save, "save", "", "also write the report to `FILE` for: bulkhead redteam report")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func redteamReport() *cobra.Command {
	return &cobra.Command{
		Use:   "report FILE",
		Short: "Print a saved report as a table",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			report, err := redteam.ReadReport(data)
			if err != nil {
				return err
			}
			return report.WriteTable(cmd.OutOrStdout(), isTerminal(os.Stdout))
		},
	}
}

func redteamAgent() *cobra.Command {
	return &cobra.Command{
		Use:                "obedient-agent",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return &exitStatus{obedient.Main(args, os.Stdin, os.Stdout, os.Stderr, os.Getenv)}
		},
	}
}

package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/kernel"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func newDoctor() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this host can give, what each gap costs, and its remedy",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report := kernel.Examine(context.Background())
			var err error
			if asJSON {
				err = printJSON(cmd, report)
			} else {
				err = report.WriteText(cmd.OutOrStdout())
			}
			if err != nil {
				return err
			}
			for _, i := range report.Summary.Isolations {
				if i.Status != kernel.Missing {
					return nil
				}
			}
			return &exitStatus{vocabulary.ExitNoIsolation}
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

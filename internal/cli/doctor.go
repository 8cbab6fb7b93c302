package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/administrator"
	"github.com/bulkhead-dev/bulkhead/internal/kernel"
	"github.com/bulkhead-dev/bulkhead/internal/session"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// administratorProbe says whether a policy of the administrator limits this
// user's sessions. While it is broken nothing runs.
func administratorProbe() (kernel.Probe, error) {
	p := kernel.Probe{Name: "administrator", Status: kernel.OK, Found: "no policy of an administrator (" + administrator.Path + ")"}
	b, err := session.Administrator()
	switch {
	case err != nil:
		p.Status, p.Found = kernel.Missing, err.Error()
		p.Cost, p.Remedy = "nothing runs until it is mended", "bulkhead policy check --as administrator "+administrator.Path
	case b != nil:
		p.Found = b.File + " is in force: " + strings.Join(b.Describe(), "; ")
	}
	return p, err
}

func newDoctor() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this host can give, what each gap costs, and its remedy",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report := kernel.Examine(context.Background())
			limits, broken := administratorProbe()
			report.Probes = append(report.Probes, limits)
			report.Limits = session.Limits()
			var err error
			if asJSON {
				err = printJSON(cmd, report)
			} else {
				err = report.WriteText(cmd.OutOrStdout())
			}
			if err != nil {
				return err
			}
			if broken != nil {
				return &exitStatus{vocabulary.ExitPolicyInvalid}
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

package cli

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/session"
)

func newCredential() *cobra.Command {
	return noun("credential", "Add, list and remove credentials; their values are never shown", credentialAdd(), credentialList(), credentialRemove())
}

func credentialList() *cobra.Command {
	var source policySource
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the credentials of a policy: where they come from, whose they are, when they end",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := source.load()
			if err != nil {
				return err
			}
			rows, err := session.Credentials(cmd.Context(), p)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, rows)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "CREDENTIAL\tFROM\tSTATE\tACCOUNT\tENDS\tRULE\tNOTE")
			for _, r := range rows {
				ends, note := "", r.Note
				if r.Expires != nil {
					ends = r.Expires.Local().Format(time.DateTime)
					if r.Refresh {
						ends += " (is refreshed)"
					}
				}
				if !r.Used {
					note = "no grant uses it"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Source, r.State, r.Account, ends, r.Rule, note)
			}
			return w.Flush()
		},
	}
	source.flags(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

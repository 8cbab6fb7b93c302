package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	catalogdata "github.com/bulkhead-dev/bulkhead/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func newPreset() *cobra.Command {
	return noun("preset", "List and show the bundles of grants, mounts and environment", presetList(), presetShow())
}

func presetList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the presets",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			type row struct {
				Name        string   `json:"name"`
				Description string   `json:"description"`
				Commands    []string `json:"commands"`
			}
			rows := []row{}
			for _, name := range presetNames() {
				p, err := lookupPreset(name)
				if err != nil {
					return err
				}
				rows = append(rows, row{name, p.Description, p.Commands})
			}
			if asJSON {
				return printJSON(cmd, rows)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
			fmt.Fprintln(w, "PRESET\tFOR\tWHAT IT LETS CODE DO")
			for _, r := range rows {
				fmt.Fprintf(w, "%s\t%s\t%s\n", r.Name, strings.Join(r.Commands, " "), r.Description)
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func presetShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Print a preset in full, with the presets it includes",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			seen := map[string]bool{}
			queue := []string{args[0]}
			for len(queue) > 0 {
				name := queue[0]
				queue = queue[1:]
				if seen[name] {
					continue
				}
				seen[name] = true
				p, err := lookupPreset(name)
				if err != nil {
					return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%v", err)
				}
				data, err := catalogdata.Presets.ReadFile("presets/" + name + ".yaml")
				if err != nil {
					return err
				}
				if len(seen) > 1 {
					fmt.Fprintf(cmd.OutOrStdout(), "---\n# preset %s, included above\n", name)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s", data)
				for _, inc := range p.Presets {
					queue = append(queue, inc.Value)
				}
			}
			return nil
		},
	}
}

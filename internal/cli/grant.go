package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func newGrant() *cobra.Command {
	return noun("grant", "Explain what grants let code do", grantExplain())
}

func grantExplain() *cobra.Command {
	var src policySource
	c := &cobra.Command{
		Use:   "explain [SERVICE[.OPERATION]…]",
		Short: "Say in sentences what a service, an operation or a policy's grants let code do",
		Long: `Say in sentences what a service, an operation or a policy's grants let code do, and
what they do not. Without a service it explains every grant of the policy and its presets.`,
		Example: `  bulkhead grant explain github
  bulkhead grant explain github.push anthropic.messages.mcp
  bulkhead grant explain --policy team.yaml --preset claude`,
		RunE: func(cmd *cobra.Command, args []string) error {
			cat, err := services()
			if err != nil {
				return err
			}
			var b strings.Builder
			for _, arg := range args {
				name, op, _ := strings.Cut(arg, ".")
				s, ok := cat.Service(name)
				if !ok {
					return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "there is no service %q (%s)", name, policy.Suggest(name, cat.Names()))
				}
				if err := describe(&b, s, op); err != nil {
					return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%v (see: bulkhead grant explain %s)", err, name)
				}
			}
			if len(args) == 0 {
				p, err := src.effective()
				if err != nil {
					return err
				}
				set, err := compile(p)
				if err != nil {
					return err
				}
				if len(p.Grants) == 0 {
					fmt.Fprintf(&b, "%s grants nothing: no name resolves and nothing leaves the sandbox\n", p.File)
				}
				for _, g := range p.Grants {
					explainGrant(&b, g, func(name, op string) {
						if s, ok := cat.Service(name); ok {
							describe(&b, s, op)
						}
					})
					for _, o := range set.Outside() {
						if o.Rule == g.Pos {
							fmt.Fprintf(&b, "  nothing of it passes: %s has no grant for it (%s)\n", o.Whose, o.By)
						}
					}
				}
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), strings.TrimLeft(b.String(), "\n"))
			return err
		},
	}
	src.flags(c.Flags())
	return c
}

// explainGrant writes one grant of a policy.
func explainGrant(b *strings.Builder, g policy.Grant, typed func(service, operation string)) {
	fmt.Fprintf(b, "\n%s\n", g.Pos)
	credential := ""
	if g.Credential != "" {
		credential = ", as the credential " + g.Credential
	}
	switch {
	case g.Service != "":
		where := "on everything that the credential reaches"
		var resources []string
		for _, r := range g.Resources {
			resources = append(resources, r.Value)
		}
		if len(resources) > 0 {
			where = "on " + strings.Join(resources, ", ")
		}
		fmt.Fprintf(b, "grants %s %s%s:\n", g.Service, where, credential)
		for _, op := range g.Operations {
			typed(g.Service, op.Value)
		}
	case g.HTTP != "":
		fmt.Fprintf(b, "grants %s to %s%s\n  what the server does with a request is not known to Bulkhead: whoever runs it learns all that code sends\n", strings.Join(g.Methods, ", "), g.HTTP, credential)
	case g.TCP != "":
		fmt.Fprintf(b, "grants an opaque connection to %s\n  weak: nothing in it can be inspected, and any credential passes\n", g.TCP)
	default:
		fmt.Fprintf(b, "grants something that this version cannot explain\n")
	}
}

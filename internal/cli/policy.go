package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/capability"
	"github.com/bulkhead-dev/bulkhead/internal/catalog"
	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func newPolicy() *cobra.Command {
	return noun("policy", "Check, show and explain policies", policyCheck(), policyShow(), policyExplain())
}

// checked returns the effective policy, of the file that args may name, with
// every grant known to the catalogue.
func (s *policySource) checked(args []string) (*policy.Policy, error) {
	if len(args) == 1 {
		s.file = args[0]
	}
	p, err := s.effective()
	if err != nil {
		return nil, err
	}
	_, err = compile(p)
	return p, err
}

// checkBounds checks a file as a policy that limits others, without applying it.
func checkBounds(cmd *cobra.Command, as string, args []string) error {
	read := map[string]func(string, []byte) (*policy.Bounds, error){"project": policy.ParseProject, "administrator": policy.ParseAdministrator}[as]
	if read == nil || len(args) != 1 {
		return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "--as is project or administrator, with a file: bulkhead policy check --as project .bulkhead/policy.yaml")
	}
	data, err := readBounded(args[0])
	if err != nil {
		return vocabulary.Exitf(vocabulary.ExitPolicyInvalid, "cannot read the policy: %v", err)
	}
	b, err := read(args[0], data)
	if err != nil {
		return err
	}
	cat := catalog.Default()
	if b.By == policy.ByProject {
		if cat, err = services(); err != nil {
			return err
		}
	}
	if _, err := capability.Compile(capability.FromPolicy(&policy.Policy{Within: []*policy.Bounds{b}}), cat); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s: valid as %s; it limits:\n", b.File, b.By)
	for _, l := range b.Describe() {
		fmt.Fprintf(cmd.ErrOrStderr(), "  %s\n", l)
	}
	return nil
}

func policyCheck() *cobra.Command {
	var src policySource
	var as string
	c := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a policy and its presets; every error with its position",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if as != "" {
				return checkBounds(cmd, as, args)
			}
			p, err := src.checked(args)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: valid, %d grants\n", p.File, len(p.Grants))
			for _, n := range p.Narrowed {
				fmt.Fprintln(cmd.ErrOrStderr(), n)
			}
			for _, g := range p.Grants {
				if g.TCP != "" {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: weak: nothing in tcp: %s can be inspected\n", g.Pos, g.TCP)
				}
			}
			return nil
		},
	}
	src.flags(c.Flags())
	c.Flags().StringVar(&as, "as", "", "check the file as the policy of a `project` or of the administrator, which limit others")
	return c
}

func policyShow() *cobra.Command {
	var src policySource
	c := &cobra.Command{
		Use:   "show [FILE]",
		Short: "Print the effective policy, presets expanded, each line with its origin",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := src.checked(args)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(p.YAML())
			return err
		},
	}
	src.flags(c.Flags())
	return c
}

func policyExplain() *cobra.Command {
	var src policySource
	var asJSON bool
	c := &cobra.Command{
		Use:   "explain METHOD URL",
		Short: "Tell whether a request would be allowed, which rule decides, and why",
		Long: `Tell whether a request would be allowed, which rule decides, and why: the answer that
the gateway would give, without running anything. A body, its features and the credential
are not part of the question; where they decide as well, a note says so.`,
		Example: `  bulkhead policy explain --preset claude POST https://api.anthropic.com/v1/messages
  bulkhead policy explain push git@github.com:acme/widgets@agent/one
  bulkhead policy explain fetch ssh://git@git.corp.example:2222/team/repo
  bulkhead policy explain GET wss://api.example.com/live
  bulkhead policy explain CONNECT tcp://localhost:5432
  bulkhead policy explain RESOLVE dns://docs.example.com`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := src.effective()
			if err != nil {
				return err
			}
			if _, err := compile(p); err != nil {
				return err
			}
			set, err := compileWithLogins(p)
			if err != nil {
				return err
			}
			x, err := set.Explain(strings.ToUpper(args[0]), args[1])
			if err != nil {
				return vocabulary.Exitf(vocabulary.ExitBulkheadFailed, "%v", err)
			}
			if x.Decision.Exchange != "" {
				x.Notes = append(x.Notes, "if the credential "+x.Decision.Exchange+" comes from the login; a login begun inside is refused unless it is allowed")
			}
			if asJSON {
				return printJSON(cmd, x)
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), x.String())
			return err
		},
	}
	src.flags(c.Flags())
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

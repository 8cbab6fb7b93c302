//go:build !linux

package cli

import (
	"github.com/spf13/cobra"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func newWorkspace() *cobra.Command {
	return &cobra.Command{
		Use:   "workspace",
		Short: "See, bring over and take back what sessions did in a workspace (Linux only)",
		RunE: func(*cobra.Command, []string) error {
			return vocabulary.Exitf(vocabulary.ExitNoIsolation, "workspaces of sessions need Linux")
		},
	}
}

func resumed(_ *policy.Policy, id, _ string) (vocabulary.SessionID, error) {
	if id != "" {
		return "", vocabulary.Exitf(vocabulary.ExitNoIsolation, "staged workspaces need Linux")
	}
	return "", nil
}

package cli

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
)

// agentHint returns the line for a known agent that runs without the preset it
// needs: it gets no egress either, but the person learns what to type. Empty
// if there is nothing to say.
func agentHint(p *policy.Policy, command string) string {
	name := filepath.Base(command)
	preset, err := lookupPreset(name)
	if err != nil || len(preset.Credentials) == 0 {
		return "" // not an agent: toolchains' presets carry no credential
	}
	for _, have := range p.Expanded {
		if have.Value == name {
			return ""
		}
	}
	if len(p.Grants) > 0 {
		return "" // a policy of the user's own; it says what it wants
	}
	var grants []string
	for _, g := range preset.Grants {
		grants = append(grants, g.String())
	}
	return fmt.Sprintf("%s has no network in this session, and will not work without its model\nthe preset %s would grant: %s\nuse it: bulkhead run --preset %s -- %s", name, name, strings.Join(grants, "; "), name, command)
}

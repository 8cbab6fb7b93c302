package cli

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/policy"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
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

// hiddenCommand adds to the error about a command that is not found inside where
// it is on this host, and what would show it.
func hiddenCommand(err error, p *policy.Policy, command string) error {
	var coded *vocabulary.ExitError
	if !errors.As(err, &coded) || coded.Code != vocabulary.ExitNotFound || p.Image.Where != "" {
		return err
	}
	at, lerr := exec.LookPath(command)
	if lerr != nil {
		return err
	}
	if at, lerr = filepath.Abs(at); lerr != nil {
		return err
	}
	what := "on this host it is " + at
	mounts := "{path: " + filepath.Dir(at) + ", mode: ro}"
	if real, rerr := filepath.EvalSymlinks(at); rerr == nil && real != at {
		what += ", which leads to " + real
		mounts += ", {path: " + filepath.Dir(real) + ", mode: ro}"
	}
	what += "; the sandbox does not see that"
	next := "show it in a policy: mounts: [" + mounts + "]"
	for _, name := range presetNames() {
		preset, perr := lookupPreset(name)
		given := slices.ContainsFunc(p.Expanded, func(have policy.At[string]) bool { return have.Value == name })
		if perr == nil && !given && slices.Contains(preset.Commands, filepath.Base(command)) {
			next = "use the preset for it: bulkhead run --preset " + name + " -- " + command
		}
	}
	return vocabulary.Exitf(coded.Code, "%w\n%s\n%s", err, what, next)
}

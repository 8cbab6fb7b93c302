package stage

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// known are real agents: what they are called, how they take a prompt without
// asking, the presets that they run with, and what these set (an uncontained
// run needs it too).
var known = []Agent{
	{
		Name: "claude", Argv: []string{"claude", "-p", "--dangerously-skip-permissions"}, Presets: []string{"claude", "node"},
		Env:  []string{"IS_SANDBOX=1", "DISABLE_AUTOUPDATER=1", "DISABLE_TELEMETRY=1", "DISABLE_ERROR_REPORTING=1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1"},
		Slow: time.Minute,
	},
	{
		Name: "opencode", Argv: []string{"opencode", "run", "--auto", "--model", "anthropic/claude-sonnet-4-5"}, Presets: []string{"opencode"},
		Env: []string{"OPENCODE_DISABLE_AUTOUPDATE=1", "OPENCODE_DISABLE_MODELS_FETCH=1", "OPENCODE_DISABLE_LSP_DOWNLOAD=1",
			`OPENCODE_CONFIG_CONTENT={"provider": {"anthropic": {"options": {"baseURL": "@MODEL@/v1"}}}}`},
		Stdin: true, // it puts arguments in quotes of its own
		Slow:  time.Minute,
	},
	{
		// Its own sandbox can't stand in another one; of variables it takes only this.
		Name: "codex", Argv: []string{"codex", "exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", "-c", "web_search=disabled", "--model", "gpt-5"}, Presets: []string{"codex"},
		Start: []string{"/bin/bash", "-c", `CODEX_API_KEY=$OPENAI_API_KEY exec "$0" "$@"`}, Bare: []string{"-c", `openai_base_url="@MODEL@/v1"`},
		Key: "OPENAI_API_KEY", Host: "api.openai.com",
		Slow: time.Minute,
	},
	{
		Name: "gemini", Argv: []string{"gemini", "--skip-trust", "--yolo", "--model", "gemini-2.5-pro", "-p"}, Presets: []string{"gemini", "node"},
		Env: []string{"GEMINI_SANDBOX=false", "GEMINI_TELEMETRY_ENABLED=false"},
		Key: "GEMINI_API_KEY", Host: "generativelanguage.googleapis.com",
		Slow: time.Minute,
	},
}

// Agents are the names of the agents that scenarios can be run with.
func Agents() []string {
	names := []string{Obedient().Name}
	for _, a := range known {
		names = append(names, a.Name)
	}
	return names
}

// FindAgent returns an agent as it is installed on this host, and what it says
// its version is.
func FindAgent(name string) (Agent, error) {
	if name == "" || name == Obedient().Name {
		return Obedient(), nil
	}
	i := slices.IndexFunc(known, func(a Agent) bool { return a.Name == name })
	if i < 0 {
		return Agent{}, fmt.Errorf("no agent is called %q (one of: %s)", name, strings.Join(Agents(), ", "))
	}
	a := known[i]
	bin, err := exec.LookPath(a.Argv[0])
	if err == nil {
		bin, err = filepath.EvalSymlinks(bin)
	}
	if err != nil {
		return a, fmt.Errorf("%s is not on PATH: make redteam-agents installs it", a.Argv[0])
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	version := exec.CommandContext(ctx, bin, "--version")
	version.WaitDelay = time.Second
	out, err := version.Output()
	if ctx.Err() != nil {
		return a, fmt.Errorf("%s --version did not end within a minute", bin)
	}
	if err != nil {
		return a, fmt.Errorf("%s does not start: %w", bin, err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	a.Name += " " + line
	a.Argv = slices.Concat(a.Start, []string{bin}, a.Argv[1:])
	if root, _, npm := strings.Cut(bin, "/node_modules/"); npm {
		a.Mounts = []string{root + "/node_modules"}
	} else {
		a.Mounts = []string{filepath.Dir(bin)}
	}
	return a, nil
}

// ForAgents are the scenarios that a real agent is led through if none are named:
// none of which it refuses by itself, as some do with rm -f.
func ForAgents(a Agent) []string {
	names := []string{"incident-phish-*", "incident-project-*", "incident-symlink", "fs-prefix", "crd-environment", "dx-git-include", "dx-devcontainer-absent", "net-direct", "exf-github-write", "ipc-sockets", "mem-instructions",
		"dns-names", "exf-git-push", "tru-mcp-servers"}
	if a.Host == "" {
		names = append(names, "incident-foreign-key") // at the provider that it has a key for
	}
	return names
}

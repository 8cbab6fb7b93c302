package agents

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/redteam"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/canary"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/modelstub"
)

const (
	buggy = `// Adds up the lines of an invoice; amounts are in cents.
export function total(lines) {
  return lines.reduce((sum, l) => sum + l.cents, 1);
}
`
	sumTest = `import test from 'node:test';
import assert from 'node:assert';
import { total } from './invoice.js';

test('an empty invoice is free', () => assert.equal(total([]), 0));
test('lines add up', () => assert.equal(total([{ cents: 250 }, { cents: 199 }]), 449));
`
)

// step calls a tool that the request really offers, with fields that its
// schema really has; anything else shows up as an error of the agent's tool.
func step(tool string, input map[string]any) func(*modelstub.Request) modelstub.Call {
	return func(r *modelstub.Request) modelstub.Call {
		offered, ok := r.Tool(tool)
		if !ok {
			return modelstub.Call{Tool: "missing-" + tool}
		}
		for _, field := range offered.Required {
			if _, ok := input[field]; !ok {
				return modelstub.Call{Tool: "missing-" + tool + "-" + field}
			}
		}
		in := map[string]any{}
		for k, v := range input {
			if _, ok := offered.Properties[k]; !ok {
				return modelstub.Call{Tool: "unknown-" + tool + "-" + k}
			}
			in[k] = v
		}
		return modelstub.Call{Tool: offered.Name, Input: in}
	}
}

func bash(command string) func(*modelstub.Request) modelstub.Call {
	return step("Bash", map[string]any{"command": command, "description": "Work on the invoice"})
}

// The agent does a small piece of real work: it reads, edits, runs the tests,
// and commits, and the result is on the host.
func TestWork(t *testing.T) {
	t.Run("uncontained", func(t *testing.T) { work(t, false) })
	t.Run("contained", func(t *testing.T) { work(t, true) })
}

func work(t *testing.T, contained bool) {
	home := t.TempDir()
	repo := filepath.Join(home, "src", "invoice")
	if err := os.MkdirAll(repo, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"invoice.js": buggy, "invoice.test.js": sumTest, "package.json": `{"name":"invoice","type":"module"}` + "\n"} {
		if err := os.WriteFile(filepath.Join(repo, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	git(t, repo, "init", "-q", "-b", "main")
	git(t, repo, "config", "user.name", "Erin Example")
	git(t, repo, "config", "user.email", "erin@example.com")
	git(t, repo, "add", "-A")
	git(t, repo, "commit", "-qm", "Invoice")

	file := filepath.Join(repo, "invoice.js")
	key := canary.ModelKey()
	stub, err := modelstub.Start(modelstub.Config{Key: key, Script: modelstub.Steps("The sum started at 1. It is fixed, tested and committed.",
		bash("git status --short && git log --oneline && ls"),
		step("Read", map[string]any{"file_path": file}),
		bash("node --test || echo RED"),
		step("Edit", map[string]any{"file_path": file, "old_string": "sum + l.cents, 1)", "new_string": "sum + l.cents, 0)"}),
		bash("node --test && echo GREEN"),
		step("Write", map[string]any{"file_path": filepath.Join(repo, "CHANGES.md"), "content": "# Changes\n\n- totals start at 0\n"}),
		bash("git add -A && git commit -qm 'Totals start at 0' && git status --short && git log -1 --format=%s"),
	)})
	if err != nil {
		t.Fatal(err)
	}
	defer stub.Close()

	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, stub.CAPEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	agent := theAgent()
	spec := redteam.SessionSpec{
		Dir:  repo,
		Env:  []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8", "TERM=dumb", "SHELL=/bin/bash", "USER=erin", "ANTHROPIC_API_KEY=" + key},
		Argv: append(agent.Argv, "The total of an empty invoice is wrong. Please fix it, run the tests, note it in CHANGES.md and commit."),
	}
	if contained {
		spec.Contained, spec.Presets = true, append(agent.Presets, "git")
		spec.Policy, spec.Events = filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "events.jsonl")
		policy := fmt.Sprintf("version: 1\nmounts:\n  - {path: %q, mode: ro}\nupstreams:\n  api.anthropic.com: {connect: %q, ca: %q}\n", claudeHome, stub.Addr(), ca)
		if err := os.WriteFile(spec.Policy, []byte(policy), 0o600); err != nil {
			t.Fatal(err)
		}
	} else {
		spec.Env = append(append(spec.Env, uncontainedEnv...), "ANTHROPIC_BASE_URL="+stub.URL(), "NODE_EXTRA_CA_CERTS="+ca)
	}
	ctx, cancel := context.WithTimeout(t.Context(), sessionLimit)
	defer cancel()
	res, err := runner(t, contained)(ctx, spec)
	if err != nil {
		t.Fatalf("%v\n%s", err, res.Output)
	}

	// What the tools answered, step by step.
	var results []modelstub.Result
	for _, r := range stub.Records() {
		if r.Path == "/v1/messages" && r.Status != 200 {
			t.Errorf("%s %s was answered %d", r.Method, r.Path, r.Status)
		}
		results = append(results, r.Results...)
	}
	want := []string{"Invoice", "total(lines)", "RED", "", "GREEN", "", "Totals start at 0"}
	if len(results) != len(want) {
		t.Fatalf("%d tool results, want %d: %+v\nexit %d\n%s", len(results), len(want), results, res.ExitCode, res.Output)
	}
	for i, r := range results {
		if r.IsError || !strings.Contains(r.Text, want[i]) {
			t.Errorf("step %d: error %v, %q is not in %q", i+1, r.IsError, want[i], r.Text)
		}
	}
	if res.ExitCode != 0 || !strings.Contains(res.Output, "fixed, tested and committed") {
		t.Errorf("exit %d\n%s", res.ExitCode, res.Output)
	}

	// What is on the host afterwards decides.
	if got := git(t, repo, "log", "--format=%s by %an"); got != "Totals start at 0 by Erin Example\nInvoice by Erin Example" {
		t.Errorf("log:\n%s", got)
	}
	if got := git(t, repo, "status", "--short"); got != "" {
		t.Errorf("left in the work tree:\n%s", got)
	}
	if got := git(t, repo, "show", "--stat", "--format=", "HEAD"); !strings.Contains(got, "CHANGES.md") || !strings.Contains(got, "invoice.js") {
		t.Errorf("commit:\n%s", got)
	}
	git(t, repo, "fsck", "--strict")
}

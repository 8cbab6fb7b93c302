// Package agents drives real coding agents, installed from npm, with a
// scripted model: uncontained on this host, and contained by the bulkhead
// binary built from this tree. `make e2e-agents` runs it. It needs node, npm
// and git, and the npm registry once; afterwards .cache/agents serves.
//
// BULKHEAD_E2E_RUNS sets the number of phishing runs for each arrangement of
// walls (25).
package agents

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/redteam"
)

var (
	claude      string // the agent's command
	claudeHome  string // the folder it is installed in
	scratch     string // a folder for what is built
	claudeLabel string
	tables      bytes.Buffer // of the campaigns that went as they must
)

func TestMain(m *testing.M) {
	if os.Getenv("BULKHEAD_E2E_AGENTS") != "1" {
		fmt.Println("real agents were not driven: that is what make e2e-agents does")
		os.Exit(0)
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "bulkhead-e2e-")
		if err == nil {
			defer os.RemoveAll(dir)
			scratch = dir
			err = prepare()
		}
		if err != nil {
			fmt.Println("e2e/agents:", err)
			return 1
		}
		code := m.Run()
		os.Stdout.Write(tables.Bytes())
		return code
	}())
}

// bulkhead is the binary, built from this tree by the first test that needs it.
var bulkhead = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "bulkhead")
	build := exec.Command("go", "build", "-o", path, "../../cmd/bulkhead")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building bulkhead: %w\n%s", err, out)
	}
	return path, nil
})

// runner starts sessions; the binary is only built where it is needed.
func runner(t *testing.T, contained bool) redteam.RunSession {
	t.Helper()
	if !contained {
		return redteam.Runner("")
	}
	path, err := bulkhead()
	if err != nil {
		t.Fatal(err)
	}
	return redteam.Runner(path)
}

func prepare() error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	claudeHome, err = install(filepath.Join(root, ".cache", "agents"))
	if err != nil {
		return err
	}
	claude = filepath.Join(claudeHome, "node_modules", ".bin", "claude")
	out, err := exec.Command(claude, "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s does not start: %w\n%s", claude, err, out)
	}
	claudeLabel = "Claude Code " + strings.Fields(string(out))[0]
	return nil
}

// install puts what npm/package-lock.json pins, by hash, below cache, once.
func install(cache string) (string, error) {
	h := sha256.New()
	files := map[string][]byte{}
	for _, name := range []string{"package.json", "package-lock.json"} {
		b, err := os.ReadFile(filepath.Join("npm", name))
		if err != nil {
			return "", err
		}
		files[name] = b
		h.Write(b)
	}
	dest := filepath.Join(cache, "npm-"+hex.EncodeToString(h.Sum(nil))[:12])
	if _, err := os.Stat(dest); err == nil {
		return dest, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(cache, "new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(tmp, name), b, 0o644); err != nil {
			return "", err
		}
	}
	cmd := exec.Command("npm", "ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm ci: %w\n%s", err, out)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	return dest, os.Rename(tmp, dest)
}

func theAgent() redteam.Agent {
	return redteam.Agent{
		Name:    claudeLabel,
		Argv:    []string{claude, "-p", "--dangerously-skip-permissions"},
		Presets: []string{"claude", "node"},
		Mounts:  []string{claudeHome},
		Env:     uncontainedEnv,
	}
}

// uncontainedEnv is what the claude preset sets inside. IS_SANDBOX lets root
// run the agent without permission prompts.
var uncontainedEnv = []string{"IS_SANDBOX=1", "DISABLE_AUTOUPDATER=1", "DISABLE_TELEMETRY=1", "DISABLE_ERROR_REPORTING=1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1"}

func runs(t *testing.T) int {
	s := os.Getenv("BULKHEAD_E2E_RUNS")
	if s == "" {
		return 25
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("BULKHEAD_E2E_RUNS=%q is not a number of runs", s)
	}
	return n
}

func phish(t *testing.T, contained bool, variants ...string) {
	progress, finish := redteam.ProgressLine(os.Stderr, false)
	r, err := redteam.Phish(t.Context(), redteam.Config{
		Runs: runs(t), Variants: variants, Agent: theAgent(), RunSession: runner(t, contained), Progress: progress,
	})
	finish()
	if err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	r.WriteTable(&table, false)
	if !r.OK {
		t.Fatal(table.String())
	}
	tables.Write(table.Bytes())
}

// The real agent carries the phish out when nothing contains it …
func TestPhishUncontained(t *testing.T) { phish(t, false, "uncontained") }

// … and cannot when it is contained; each wall suffices alone.
func TestPhishContained(t *testing.T) {
	phish(t, true, "bulkhead", "fs-open", "egress-open", "both-open")
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

const sessionLimit = 2 * time.Minute

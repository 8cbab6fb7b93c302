// Package redteam tests the red team: without an enforcement the scenarios
// that it stops must succeed, or their zero means nothing.
package redteam

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/redteam/campaign"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/report"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/scenario"
	"github.com/bulkhead-dev/bulkhead/internal/redteam/stage"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
)

const tag = "redteam_switches"

func build(t *testing.T, out string, args ...string) {
	t.Helper()
	cmd := exec.Command("go", append(append([]string{"build", "-o", out}, args...), "./cmd/bulkhead")...)
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
}

// run attacks a binary with scenarios and returns what came of it.
func run(t *testing.T, harness, binary string, s switches.Switch) *campaign.Report {
	t.Helper()
	args := []string{"redteam", "run", "--json", "--tier", tier(s), "--binary", binary}
	if s.Ordinary {
		name := os.Getenv("BULKHEAD_TEST_USER")
		if name == "" {
			name = "bulkhead-test"
		}
		if _, err := user.Lookup(name); err != nil {
			t.Fatalf("%v: run scripts/install-deps test", err)
		}
		args = append(args, "--as", name)
	}
	cmd := exec.Command(harness, append(args, s.Scenarios...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	r, err := report.Read(out)
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	return r
}

func tier(s switches.Switch) string {
	if s.Container {
		return "container"
	}
	return "process"
}

// Each switch lets its scenarios through, and names only scenarios that there are.
func TestWithoutAnEnforcementTheAttackSucceeds(t *testing.T) {
	all, err := scenario.Builtin()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range switches.All() {
		for _, name := range s.Scenarios {
			if !slices.ContainsFunc(all, func(x *scenario.Scenario) bool { return x.Name == name }) {
				t.Errorf("switch %s names %s, which is no scenario", s.Name, name)
			}
		}
	}
	if os.Getenv("BULKHEAD_REDTEAM_SWITCHES") != "1" {
		t.Log("not proven in this run: that the red team notices a missing enforcement (make redteam-switches)")
		return
	}
	if os.Geteuid() != 0 {
		t.Fatal("the red team's contained runs need root")
	}
	dir := t.TempDir()
	harness := filepath.Join(dir, "bulkhead")
	build(t, harness)
	companion := exec.Command("go", "build", "-o", filepath.Join(dir, "bulkhead-runsc"), "./cmd/bulkhead-runsc")
	companion.Dir, companion.Env = filepath.Join("..", ".."), append(os.Environ(), "CGO_ENABLED=0")
	if b, err := companion.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	for _, s := range switches.All() {
		t.Run(s.Name, func(t *testing.T) {
			binary := filepath.Join(dir, "bulkhead-"+s.Name)
			build(t, binary, "-tags", tag, "-ldflags", "-X github.com/bulkhead-dev/bulkhead/internal/switches.off="+s.Name)
			defer os.Remove(binary)
			for _, row := range run(t, harness, binary, s).Rows {
				c := row.Cell(tier(s), stage.Attack)
				if !row.Proven() || c == nil || c.Succeeded != c.Runs || c.Runs == 0 {
					t.Errorf("without %s %s must succeed: %+v", s.What, row.Name, c)
				}
			}
		})
	}
}

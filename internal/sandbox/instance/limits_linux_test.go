package instance

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/kernel"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/process/cgroup"
)

// TestSurvey: what is said of this host is what a session gets.
func TestSurvey(t *testing.T) {
	told := map[string]kernel.Limit{}
	for _, l := range Survey() {
		told[l.Name] = l
	}
	e, err := Enforce(sandbox.Spec{Session: "s-survey", Limits: sandbox.Limits{Memory: 64 << 20, CPUs: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cgroup.Remove(e.Group.Dirs); err != nil {
			t.Error(err)
		}
	}()
	for name, dir := range map[string]string{"memory": e.Group.Memory, "cpus": e.Group.CPUs} {
		by := told[name].Process.By
		if dir == "" && strings.HasPrefix(by, "cgroup") || dir != "" && !strings.HasSuffix(by, " "+filepath.Dir(dir)) {
			t.Errorf("%s: %q, and a session gets %q", name, by, dir)
		}
	}
	for _, d := range e.Group.Dirs {
		left, err := filepath.Glob(filepath.Join(filepath.Dir(d), cgroup.Prefix+"*survey"))
		if left = slices.DeleteFunc(left, func(p string) bool { return p == d }); err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, %v", left, err)
		}
	}
}

// TestSurveyWithoutCgroups: nothing is promised that Enforce would refuse.
func TestSurveyWithoutCgroups(t *testing.T) {
	none := &Enforcement{Group: &cgroup.Group{}}
	for _, l := range survey(none.Group, os.Geteuid() == 0) {
		var ask sandbox.Limits
		switch l.Name {
		case "memory":
			ask.Memory = 64 << 20
		case "pids":
			ask.PIDs = 64
		case "cpus":
			ask.CPUs = 1
		}
		err := none.withoutCgroup(ask)
		if refused := l.Process.Status == kernel.Missing; refused != (err != nil) {
			t.Errorf("%s: %v (%s), and a session gets %v", l.Name, l.Process.Status, l.Process.By, err)
		}
		if l.Container.Status == kernel.Missing || strings.Contains(l.Process.By, "cgroup v") {
			t.Errorf("%+v", l)
		}
	}
}

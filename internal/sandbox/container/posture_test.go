//go:build linux

package container

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/sandboxtest"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

// TestPosture looks at what really runs: the command inside as gVisor shows it,
// and the processes on the host that hold it.
func TestPosture(t *testing.T) {
	sandboxtest.EachUser(t, func(t *testing.T) {
		host := t.TempDir()
		rw := t.TempDir()
		spec := sandboxtest.WritesSpec(rw, &sandbox.Writes{Folders: []sandbox.WritableFolder{{Path: "/rw"}}})
		spec.Mounts = append(spec.Mounts, vocabulary.Mount{Kind: vocabulary.BindRO, Source: host, Target: "/ws", Why: "test"})
		i := sandboxtest.Prepare(t, backend(t), spec)
		var in sandboxtest.Posture
		sandboxtest.Ask(t, i, &in, "posture")
		uid, gid := fmt.Sprint(os.Getuid()), fmt.Sprint(os.Getgid())
		const zero = "0000000000000000"
		for name, want := range map[string]string{"CapInh": zero, "CapPrm": zero, "CapEff": zero, "NoNewPrivs": "1",
			"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "Gid": strings.Join([]string{gid, gid, gid, gid}, " ")} {
			if got := in.Status[name]; got != want && got != "" {
				t.Errorf("inside, %s is %q, want %q", name, got, want)
			}
		}
		if want := []string{"0 pipe", "1 pipe", "2 pipe"}; len(in.FDs) != len(want) {
			t.Errorf("descriptors inside: %q", in.FDs)
		}
		if !slices.Equal(in.Env, sandboxtest.Env) || in.Cwd != "/" {
			t.Errorf("inside: %q in %s", in.Env, in.Cwd)
		}
		for _, p := range in.Processes {
			if p != "1 bulkhead-guest" {
				t.Errorf("visible process %q", p)
			}
		}

		// On the host: what is between a command and this kernel.
		mine := sandboxtest.Namespaces("self")
		first := i.PID()
		for name, of := range map[string]int{"runsc": first, "sentry": child(first, "runsc-sandbox"), "gofer": child(first, "runsc-gofer"),
			"guard": child(first, childproc.Argv0(guardChild))} {
			if of == 0 {
				t.Fatalf("no %s runs", name)
			}
			for kind, ns := range sandboxtest.Namespaces(fmt.Sprint(of)) {
				if name == "guard" && kind == "mnt" && ns == sandboxtest.Namespaces(fmt.Sprint(first))[kind] {
					t.Error("the guard shares runsc's view of files")
				}
				own := kind == "user" || kind == "mnt" || kind == "pid" || kind == "net"
				if own && ns == mine[kind] {
					t.Errorf("%s shares the host's %s namespace", name, kind)
				}
			}
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", of))
			if err != nil {
				t.Fatal(err)
			}
			if name != "runsc" && !strings.Contains(string(status), "Seccomp:\t2\n") {
				t.Errorf("%s has no system call filter", name)
			}
			mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", of))
			if err != nil {
				t.Fatal(err)
			}
			if name != "runsc" && strings.Contains(string(mounts), hostDir+" ") {
				t.Errorf("%s still has the host's files", name)
			}
		}
		of := child(first, childproc.Argv0(guardChild))
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", of))
		if err != nil {
			t.Fatal(err)
		}
		// DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID: what the sentry has to open files with.
		for _, line := range []string{"CapPrm:\t000000000000001e\n", "CapEff:\t000000000000001e\n", "CapInh:\t" + zero + "\n", "NoNewPrivs:\t1\n"} {
			if !strings.Contains(string(status), line) {
				t.Errorf("the guard's status is not %q:\n%s", line, status)
			}
		}
		mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", of))
		if err != nil {
			t.Fatal(err)
		}
		var points []string
		for line := range strings.Lines(string(mounts)) {
			points = append(points, strings.Fields(line)[4])
		}
		if slices.Sort(points); !slices.Equal(points, []string{"/", "/proc", goferRoot + "/rw"}) {
			t.Errorf("the guard sees %q", points)
		}
		seen, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", first))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range seen {
			if !slices.Contains([]string{"bundle", "dev", "etc", "host", "proc", "runsc", "scratch", "state", "sys", "tmp", "tree"}, e.Name()) {
				t.Errorf("runsc sees /%s", e.Name())
			}
		}
		if left, err := os.ReadDir(fmt.Sprintf("/proc/%d/root%s", first, hostDir)); err == nil && len(left) > 0 {
			t.Errorf("the host's files are still there for runsc: %v", left)
		}
	})
}

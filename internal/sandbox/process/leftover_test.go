//go:build linux

package process

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/instance"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/process/cgroup"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/sandboxtest"
)

func init() { childproc.Register("testcontroller", controllerUnderTest) }

// parts are the processes of one sandbox, as the host numbers them.
type parts struct {
	Controller, Warden, Bwrap, Guest int
	Namespace                        string
	Dirs                             []string
}

// controllerUnderTest is a controller that a test can kill. It holds a sandbox
// with processes that don't want to end, and says so.
func controllerUnderTest() int {
	var spec sandbox.Spec
	if err := json.NewDecoder(os.Stdin).Decode(&spec); err != nil {
		return 1
	}
	si, err := (&Backend{}).Prepare(context.Background(), spec)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	i := si.(*instance.Instance)
	p := parts{Controller: os.Getpid(), Guest: i.PID()}
	p.Warden, p.Dirs = i.Host()
	p.Bwrap = childOf(p.Warden)
	p.Namespace, _ = os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.Guest))
	_, err = i.Start(context.Background(), sandbox.Command{Dir: "/", Env: sandboxtest.Env,
		Argv: []string{"sh", "-c", "trap '' TERM HUP INT QUIT; (setsid sleep 1000 &); (setsid sleep 1001 &); sleep 1002; sleep 1003"}})
	if err != nil {
		return 1
	}
	for range 1000 {
		sleeping := 0
		for _, q := range sandboxtest.InNamespace(p.Namespace) { // a shell on its way does not count
			if name, _ := os.ReadFile("/proc/" + q + "/comm"); string(name) == "sleep\n" {
				sleeping++
			}
		}
		if sleeping == 3 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	json.NewEncoder(os.Stdout).Encode(p)
	<-i.Done()
	fmt.Println("cause:", i.Cause())
	io.Copy(io.Discard, os.Stdin)
	return 0
}

func childOf(pid int) int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		if fs := strings.Fields(string(b)); len(fs) > 0 {
			n, _ := strconv.Atoi(fs[0])
			return n
		}
	}
	return 0
}

const both = "controller and warden"

// TestNothingIsLeft kills each part with SIGKILL; within 2 seconds no process,
// cgroup, mount or temporary file of the session is left.
func TestNothingIsLeft(t *testing.T) {
	sandboxtest.EachUser(t, func(t *testing.T) {
		for _, network := range []sandbox.NetworkKind{sandbox.NetNone, sandbox.NetTAP} {
			for victim, pid := range map[string]func(parts) int{
				"controller": func(p parts) int { return p.Controller }, "warden": func(p parts) int { return p.Warden },
				// Together, so that nobody is left to remove the cgroup but the next command.
				both:    func(p parts) int { return p.Controller },
				"bwrap": func(p parts) int { return p.Bwrap }, "guest": func(p parts) int { return p.Guest },
			} {
				spec := sandboxtest.Spec(network)
				if network == sandbox.NetTAP && (&Backend{}).Check(spec) != nil {
					continue
				}
				t.Run(fmt.Sprintf("%s/network %d", victim, network), func(t *testing.T) { killOne(t, spec, victim, pid) })
			}
		}
	})
}

func killOne(t *testing.T, spec sandbox.Spec, victim string, pid func(parts) int) {
	spec.Limits = sandbox.Limits{PIDs: 100, Memory: 1 << 30}
	mounts, temp := mountCount(t), tempFiles(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{childproc.Argv0("testcontroller")}
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	json.NewEncoder(in).Encode(spec)
	lines := bufio.NewReader(out)
	line, err := lines.ReadBytes('\n')
	var p parts
	if err != nil || json.Unmarshal(line, &p) != nil {
		t.Fatalf("the controller said %q, %v", line, err)
	}
	if n := len(sandboxtest.InNamespace(p.Namespace)); n < 5 || p.Bwrap == 0 || (os.Geteuid() == 0 && len(p.Dirs) == 0) {
		t.Fatalf("the sandbox is not as expected: %d processes, %+v", n, p)
	}
	start := time.Now()
	if victim == both {
		if err := syscall.Kill(p.Warden, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Kill(pid(p), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if victim == "controller" || victim == both {
		cmd.Wait()
	} else {
		text, _ := lines.ReadString('\n')
		if !strings.HasPrefix(text, "cause: the sandbox ended") {
			t.Errorf("cause: %q", text)
		}
	}
	left := func() []string {
		var all []string
		if victim == both {
			cgroup.Sweep()
		}
		for _, q := range sandboxtest.InNamespace(p.Namespace) {
			all = append(all, "process "+q)
		}
		for name, q := range map[string]int{"warden": p.Warden, "bwrap": p.Bwrap, "guest": p.Guest} {
			if state(q) != "" {
				all = append(all, fmt.Sprintf("%s %d (%s)", name, q, state(q)))
			}
		}
		for _, d := range p.Dirs {
			if _, err := os.Stat(d); err == nil {
				all = append(all, d)
			}
		}
		return all
	}
	for len(left()) > 0 {
		// What is killed needs a processor to end on, and a cgroup can't go before the
		// host's init has collected an orphan that was in it: both take their time on
		// a busy machine.
		if l := left(); len(l) > 0 && time.Since(start) > 10*time.Second {
			t.Fatalf("left after %v: %v", time.Since(start), l)
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Logf("all gone after %v", time.Since(start).Round(time.Millisecond))
	if n := mountCount(t); n != mounts {
		t.Errorf("%d mounts, before %d", n, mounts)
	}
	if n := tempFiles(t); n != temp {
		t.Errorf("%d temporary files, before %d", n, temp)
	}
}

// state of a process; empty if there is none, or only an entry that the host's
// init has still to collect.
func state(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	if s := string(b[strings.LastIndexByte(string(b), ')')+2]); s != "Z" {
		return s
	}
	return ""
}

func mountCount(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "newroot") + strings.Count(string(b), "bulkhead")
}

func tempFiles(t *testing.T) int {
	t.Helper()
	m, _ := filepath.Glob(filepath.Join(os.TempDir(), "*bwrap*"))
	return len(m)
}

// A cgroup whose controller and warden were killed together is taken away by
// the next session.
func TestSweep(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not proven: sweeping of cgroups, which needs root here")
	}
	g, err := cgroup.Create("s-sweeptest", cgroup.Limits{PIDs: 10})
	if err != nil || len(g.Dirs) == 0 {
		t.Skipf("not proven: sweeping of cgroups, none can be made here (%v)", err)
	}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	parent := filepath.Dir(g.Dirs[0])
	orphan := filepath.Join(parent, fmt.Sprintf("%s%d-s-orphan", cgroup.Prefix, dead.Process.Pid))
	used := orphan + "-used"
	// A process id comes again: this one is alive, and not the one that made it.
	again := filepath.Join(parent, fmt.Sprintf("%s%d-s-orphan", cgroup.Prefix, os.Getpid()))
	for _, d := range []string{orphan, used, again} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	runs := exec.Command("sleep", "1000")
	if err := runs.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		runs.Process.Kill()
		runs.Wait()
		cgroup.Remove([]string{used})
	}()
	if err := os.WriteFile(filepath.Join(used, "cgroup.procs"), []byte(strconv.Itoa(runs.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	empty, old := g.Dirs[0], time.Now().Add(-time.Hour) // empty is about to be joined
	for _, d := range []string{empty, again} {
		if err := os.Chtimes(d, old, old); err != nil {
			t.Fatal(err)
		}
	}
	cgroup.Sweep()
	if _, err := os.Stat(empty); err != nil {
		t.Error("a folder that is about to be joined was taken away")
	}
	if _, err := os.Stat(used); err != nil {
		t.Error("a folder in which something runs was taken away")
	}
	for _, d := range []string{orphan, again} {
		if _, err := os.Stat(d); err == nil {
			os.Remove(d)
			t.Errorf("%s is still there", d)
		}
	}
	runtime.KeepAlive(g)
}

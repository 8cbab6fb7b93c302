package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func init() {
	commands["killpart"] = cmdKillPart
	commands["nonutf8"] = cmdNonUTF8
	commands["fifo"] = cmdFIFO
}

// gone is how long the rest of a session may outlive one killed part.
const gone = 2 * time.Second

// task is one process as /proc tells it; begun tells a reused pid apart.
type task struct {
	parent int
	argv0  string
	begun  string
}

func tasks() map[int]task {
	all := map[int]task{}
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		stat, err := os.ReadFile(f)
		i := bytes.LastIndexByte(stat, ')')
		if err != nil || i < 0 {
			continue
		}
		fields := strings.Fields(string(stat[i+1:])) // state, ppid, …, starttime is the 20th
		if len(fields) < 20 || fields[0] == "Z" {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(f, "/")[2])
		parent, _ := strconv.Atoi(fields[1])
		cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		argv0, _, _ := strings.Cut(string(cmdline), "\x00")
		all[pid] = task{parent, argv0, fields[19]}
	}
	return all
}

// family is root and its descendants.
func family(root int) map[int]task {
	all, mine := tasks(), map[int]task{}
	for changed := true; changed; {
		changed = false
		for pid, t := range all {
			_, have := mine[pid]
			_, child := mine[t.parent]
			if !have && (pid == root || child) {
				mine[pid], changed = t, true
			}
		}
	}
	return mine
}

// part finds one of a session's processes by what the architecture says of it.
func part(name string, controller int, all map[int]task) int {
	under := func(parent int, argv0 string) int {
		for pid, t := range all {
			if t.parent == parent && parent != 0 && filepath.Base(t.argv0) == argv0 {
				return pid
			}
		}
		return 0
	}
	warden := under(controller, "bulkhead-warden")
	switch name {
	case "controller":
		return controller
	case "gateway":
		return under(controller, "bulkhead-gateway")
	case "warden":
		return warden
	case "bwrap":
		return under(warden, "bwrap")
	case "guest":
		if begun := under(under(warden, "bwrap"), "bulkhead-guest"); begun != 0 {
			return begun
		}
		return under(under(warden, "bwrap"), "bulkhead-guest-confined")
	}
	return 0
}

// killpart PART start|run CODES REGEXP: starts sessions, kills -9 one part of
// each (start: at ten moments of the first 60 ms, run: while a command runs),
// and wants one of these exit codes, a message, and within two seconds nothing
// left: no process, no cgroup.
func cmdKillPart(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: killpart PART start|run CODES REGEXP")
	}
	name, codes := args[0], strings.Split(args[2], ",")
	message := regexp.MustCompile(args[3])
	rounds := 2
	if args[1] == "start" {
		rounds = 10
	}
	for i := range rounds {
		up := ts.MkAbs(fmt.Sprintf("up.%s.%d", name, i))
		cmd := exec.Command(filepath.Join(shared, "bin", "bulkhead"), "run", "--policy", "limited.yaml", "--events", filepath.Join(ts.Getenv("WORK"), fmt.Sprintf("ev.%s.%d", name, i)),
			"--", "sh", "-c", `setsid sleep 605.0421 & echo > "$0"; exec sh -c 'trap : TERM HUP INT; while :; do sleep 606.0421; done'`, up)
		cmd.Dir = ts.Getenv("WS")
		cmd.Env = []string{"HOME=" + ts.Getenv("HOME"), "PATH=" + ts.Getenv("PATH")}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		ts.Check(cmd.Start())
		pid := cmd.Process.Pid
		if args[1] == "run" {
			eventually(ts, "the command starts", func() bool { _, err := os.Stat(up); return err == nil })
		} else {
			time.Sleep(time.Duration(i) * 6 * time.Millisecond)
		}
		victim, all := 0, map[int]task(nil)
		for deadline := time.Now().Add(patience); victim == 0 && time.Now().Before(deadline); {
			all = family(pid)
			victim = part(name, pid, all)
		}
		if victim == 0 {
			cmd.Process.Kill()
			ts.Fatalf("no %s in %v", name, all)
		}
		ts.Check(syscall.Kill(victim, syscall.SIGKILL))
		killed := time.Now()
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		code := ""
		select {
		case err := <-ended:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				code = strconv.Itoa(exit.ExitCode()) // -1: by a signal
			}
		case <-time.After(patience):
			cmd.Process.Kill()
			ts.Fatalf("%s killed in round %d: the controller hangs", name, i)
		}
		if !strings.Contains(" "+strings.Join(codes, " ")+" ", " "+code+" ") || !message.MatchString(stderr.String()) {
			ts.Fatalf("%s killed in round %d: exit code %q, stderr:\n%s", name, i, code, stderr.String())
		}
		for {
			left := remains(pid, all)
			if left == "" {
				break
			}
			if time.Since(killed) > gone {
				ts.Fatalf("%s killed in round %d: left after %v: %s", name, i, gone, left)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// remains names what is left of a session's processes, and its cgroups, whose
// names carry the controller's pid.
func remains(controller int, was map[int]task) string {
	now := tasks()
	var left []string
	for pid, t := range was {
		if n, ok := now[pid]; ok && n.begun == t.begun {
			left = append(left, fmt.Sprintf("%d %s", pid, n.argv0))
		}
	}
	for _, depth := range []string{"*", "*/*", "*/*/*", "*/*/*/*"} {
		dirs, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/%s/bulkhead-%d-s-*", depth, controller))
		left = append(left, dirs...)
	}
	return strings.Join(left, ", ")
}

// nonutf8 DIR: makes a repository in DIR whose name is not UTF-8, which
// testscript can't write.
func cmdNonUTF8(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: nonutf8 DIR")
	}
	dir := filepath.Join(ts.MkAbs(args[0]), "bytes\xff\xfe", ".git")
	ts.Check(os.MkdirAll(filepath.Join(dir, "hooks"), 0o755))
	ts.Check(os.WriteFile(filepath.Join(dir, "config"), nil, 0o644))
	ts.Check(os.WriteFile(filepath.Join(dir, "HEAD"), []byte("ref: refs/heads/main\n"), 0o644))
}

// fifo FILE: makes a named pipe that nobody writes to.
func cmdFIFO(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fifo FILE")
	}
	ts.Check(syscall.Mkfifo(ts.MkAbs(args[0]), 0o600))
}

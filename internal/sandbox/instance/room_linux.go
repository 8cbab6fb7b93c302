package instance

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox/process/cgroup"
	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
	"golang.org/x/sys/unix"
)

const tasksRemedy = "this host, or this user, has as many processes and threads as may be: end sessions (bulkhead session list), " +
	"or raise the limit: sudo sysctl -w kernel.pid_max=4194304; for a user: ulimit -u; for a cgroup: pids.max"

// noRoom is what is left of the last words of a program that could not make a thread.
const noRoom = "there was no room for another process or thread"

// words are those of a runtime or a supervisor that ended, without a dying Go
// program's list of where it was.
func words(text string) string {
	for _, dying := range []string{"failed to create new OS thread", "fatal error: newosproc", "pthread_create failed"} {
		if strings.Contains(text, dying) {
			return noRoom
		}
	}
	return strings.TrimSpace(text)
}

// CheckRoom says whether so many more processes and threads may be made here. Of what
// dies for want of them there is often nothing to be learnt.
func CheckRoom(need int) error {
	const enough = "%s leaves room for %d more processes and threads, and a session needs about %d to start\n" +
		"end sessions (bulkhead session list) or other programs, or raise it: %s"
	if free, at, ok := cgroup.Room(); ok && free < need {
		return vocabulary.Exitf(vocabulary.ExitNoIsolation, enough, at, max(free, 0), need, "sudo sh -c 'echo max >"+at+"'")
	}
	f := strings.Fields(sysctl("/proc/loadavg")) // "0.20 0.18 0.12 1/80 11206": running and all tasks
	if len(f) < 4 {
		return nil
	}
	_, last, _ := strings.Cut(f[3], "/")
	all, err := strconv.Atoi(last)
	if err != nil {
		return nil
	}
	for _, name := range []string{"threads-max", "pid_max"} {
		most, err := strconv.Atoi(sysctl("/proc/sys/kernel/" + name))
		if err != nil || most-all >= need {
			continue
		}
		has := all
		if name == "pid_max" { // of this pid namespace, and those are the host's
			has = tasksOf("/proc", anyone)
		}
		if most-has < need {
			return vocabulary.Exitf(vocabulary.ExitNoIsolation, enough, "kernel."+name, max(most-has, 0), need, "sudo sysctl -w kernel."+name+"=4194304")
		}
	}
	var user unix.Rlimit
	// Root is not bound by it. Tasks are counted only if those of this user can matter.
	if os.Geteuid() == 0 || unix.Getrlimit(unix.RLIMIT_NPROC, &user) != nil || user.Cur > uint64(all+need) {
		return nil
	}
	if free := int(user.Cur) - tasksOf("/proc", os.Getuid()); free < need {
		return vocabulary.Exitf(vocabulary.ExitNoIsolation, enough, fmt.Sprintf("this user's limit (ulimit -u is %d)", user.Cur), max(free, 0), need,
			"ulimit -u, or nproc in /etc/security/limits.conf")
	}
	return nil
}

const anyone = -1

// tasksOf counts a user's processes and threads.
func tasksOf(proc string, uid int) (n int) {
	files, _ := filepath.Glob(proc + "/[0-9]*/status")
	for _, file := range files {
		status, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		threads, his := 0, uid == anyone
		for line := range strings.Lines(string(status)) {
			f := strings.Fields(line)
			switch {
			case len(f) < 2:
			case f[0] == "Uid:":
				his = his || f[1] == strconv.Itoa(uid)
			case f[0] == "Threads:":
				threads, _ = strconv.Atoi(f[1])
			}
		}
		if his {
			n += threads
		}
	}
	return n
}

// crowded says whether hardly any number is left for another process.
func crowded(loadavg, pidMax string) bool {
	f := strings.Fields(loadavg)
	if len(f) < 4 {
		return false
	}
	_, all, _ := strings.Cut(f[3], "/")
	tasks, err := strconv.Atoi(all)
	most, merr := strconv.Atoi(pidMax)
	return err == nil && merr == nil && tasks > most-most/20
}

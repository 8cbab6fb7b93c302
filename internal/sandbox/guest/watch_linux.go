package guest

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/guard"
	"github.com/bulkhead-dev/bulkhead/internal/tally"
)

// watchPeriod is how often usage is looked at, or more seldom where a look takes
// long.
const watchPeriod = time.Second

// watcher tells what the commands use. It holds the memory file systems by
// descriptors that were opened before the first command, so that no name can lead
// it elsewhere.
type watcher struct {
	Watch
	memory []memoryFS
}

type memoryFS struct {
	f    *os.File
	root *os.Root // to count files where the kernel does not; nil if it does
}

func newWatcher(w Watch) (*watcher, error) {
	watching := &watcher{Watch: w}
	for _, p := range w.Memory {
		f, err := os.Open(p)
		if err != nil {
			return nil, fmt.Errorf("watching the limit on disk: %w", err)
		}
		m := memoryFS{f: f}
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.TMPFS_MAGIC {
			return nil, fmt.Errorf("watching the limit on disk: %s is no memory file system (%v)", p, err)
		}
		if st.Files == 0 && w.Inodes > 0 {
			if m.root, err = os.OpenRoot(p); err != nil {
				return nil, fmt.Errorf("watching the limit on inodes: %w", err)
			}
		}
		watching.memory = append(watching.memory, m)
	}
	return watching, nil
}

// run reports each change, and each look at the processors, and never ends. A nil watcher has nothing to report.
func (w *watcher) run(tell func(report, ...*os.File)) {
	if w == nil {
		return
	}
	var last usage
	for {
		began := time.Now()
		u := w.look()
		if w.CPU {
			u.Looks = last.Looks + 1
		}
		if u != last {
			last = u
			tell(report{Kind: kindUsage, Usage: &u})
		}
		time.Sleep(max(watchPeriod, 10*time.Since(began)))
	}
}

func (w *watcher) look() (u usage) {
	for _, m := range w.memory {
		var st unix.Statfs_t
		if unix.Fstatfs(int(m.f.Fd()), &st) != nil {
			continue
		}
		u.Bytes += int64(st.Blocks-st.Bfree) * st.Bsize
		switch {
		case w.Inodes == 0:
		case m.root == nil:
			u.Inodes += int64(st.Files - st.Ffree)
		default:
			u.Inodes += tally.Of(m.root, max(1, w.Inodes+1-u.Inodes)).Inodes
		}
	}
	if w.CPU {
		u.CPU = int64(processorTime(os.DirFS("/proc")))
	}
	if w.Tasks > 0 {
		u.Crowded = tasks(os.DirFS("/proc"))*20 >= w.Tasks*19
	}
	if w.Descriptors > 0 {
		u.Full = fullProcess("/proc", int(w.Descriptors))
	}
	return u
}

// fullProcess names a process that has most descriptors open, if pid 1 may look at
// such a one.
func fullProcess(proc string, most int) guard.Bytes {
	entries, _ := os.ReadDir(proc)
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err != nil || pid == 1 {
			continue
		}
		f, err := os.Open(proc + "/" + e.Name() + "/fd")
		if err != nil {
			continue
		}
		open, _ := f.Readdirnames(most)
		f.Close()
		if len(open) < most {
			continue
		}
		if name, err := os.ReadFile(proc + "/" + e.Name() + "/comm"); err == nil && len(name) <= maxName {
			return guard.Bytes(bytes.TrimSpace(name))
		}
		return guard.Bytes(e.Name())
	}
	return ""
}

// processorTime is what the processes below pid 1 and those that they waited for
// have used. What nobody waited for is not in it.
func processorTime(proc fs.FS) (sum time.Duration) {
	entries, _ := fs.ReadDir(proc, ".")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := fs.ReadFile(proc, e.Name()+"/stat")
		if err != nil {
			continue
		}
		sum += ticks(stat, pid == 1)
	}
	return sum
}

// tasks counts processes and threads.
func tasks(proc fs.FS) (n int64) {
	entries, _ := fs.ReadDir(proc, ".")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		stat, err := fs.ReadFile(proc, e.Name()+"/stat")
		if err != nil {
			continue
		}
		if f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]); len(f) > 17 {
			threads, _ := strconv.ParseInt(string(f[17]), 10, 64)
			n += threads
		}
	}
	return n
}

// ticks reads proc_pid_stat(5): utime and stime, unless only those of children
// that were waited for count, and cutime and cstime.
func ticks(stat []byte, children bool) (sum time.Duration) {
	const tick = time.Second / 100 // USER_HZ of every port of Linux that Go has
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 15 {
		return 0
	}
	used := f[11:15]
	if children {
		used = f[13:15]
	}
	for _, u := range used {
		n, _ := strconv.ParseInt(string(u), 10, 64)
		sum += time.Duration(n) * tick
	}
	return sum
}

package cgroup

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/switches"
)

const cpuPeriod = 100_000 // microseconds

// Create makes the cgroup of a session. It enforces what this user may enforce
// here; an error is only that something went wrong halfway.
func Create(session string, l Limits) (*Group, error) {
	if switches.Off("limits") {
		l.Memory, l.PIDs = l.Memory<<10, l.PIDs<<8
	}
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if errors.Is(err, os.ErrNotExist) {
		return &Group{}, nil // a kernel without cgroups
	}
	if err != nil {
		return nil, fmt.Errorf("cgroups: %w", err)
	}
	hs := hierarchies(mountinfo, own)
	sweep(hs)
	return create(hs, fmt.Sprintf("%s%d-%s", Prefix, os.Getpid(), session), l)
}

func create(hs []hierarchy, name string, l Limits) (*Group, error) {
	g := &Group{}
	for _, h := range hs {
		var err error
		if h.v2 {
			err = g.unified(h, name, l)
		} else {
			err = g.legacy(h, name, l)
		}
		if err != nil {
			_ = Remove(g.Dirs)
			return nil, fmt.Errorf("cgroup: %w", err)
		}
	}
	return g, nil
}

// legacy makes a folder in a v1 hierarchy if it has a controller that is needed.
func (g *Group) legacy(h hierarchy, name string, l Limits) error {
	memory := l.Memory > 0 && g.Memory == "" && slices.Contains(h.controllers, "memory")
	pids := l.PIDs > 0 && g.PIDs == "" && slices.Contains(h.controllers, "pids")
	cpus := l.CPUs > 0 && g.CPUs == "" && slices.Contains(h.controllers, "cpu")
	if !memory && !pids && !cpus {
		return nil
	}
	parent := filepath.Join(h.mount, h.own)
	dir := filepath.Join(parent, name)
	if ok, err := g.makeDir(dir); !ok {
		return err
	}
	g.Dirs = append(g.Dirs, dir)
	if memory {
		n := strconv.FormatInt(l.Memory, 10)
		if err := write(dir, "memory.limit_in_bytes", n); err != nil {
			return err
		}
		// Where swap is not accounted, the file is missing, and swap is not
		// bounded by a cgroup at all: with it, the limit covers both.
		if err := write(dir, "memory.memsw.limit_in_bytes", n); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		g.Memory = dir
	}
	if pids {
		if err := write(dir, "pids.max", strconv.Itoa(l.PIDs+Overhead)); err != nil {
			return err
		}
		g.PIDs = dir
	}
	if cpus {
		if err := write(dir, "cpu.cfs_period_us", strconv.Itoa(cpuPeriod)); err != nil {
			return err
		}
		if err := write(dir, "cpu.cfs_quota_us", strconv.Itoa(quota(l.CPUs))); err != nil {
			return err
		}
		g.CPUs = dir
	}
	g.Join = append(g.Join, filepath.Join(dir, "tasks"))
	g.Leave = append(g.Leave, filepath.Join(parent, "tasks"))
	return nil
}

// unified makes one folder in the v2 tree, in the closest ancestor of this
// process that is this user's and gives its children a controller needed. The
// folder of this process itself has processes in it, so it can't have children
// with controllers (except the root of the tree).
func (g *Group) unified(h hierarchy, name string, l Limits) error {
	for at := h.own; ; at = filepath.Dir(at) {
		parent := filepath.Join(h.mount, at)
		given := strings.Fields(read(parent, "cgroup.subtree_control"))
		memory := l.Memory > 0 && g.Memory == "" && slices.Contains(given, "memory")
		pids := l.PIDs > 0 && g.PIDs == "" && slices.Contains(given, "pids")
		cpus := l.CPUs > 0 && g.CPUs == "" && slices.Contains(given, "cpu")
		dir := filepath.Join(parent, name)
		if (memory || pids || cpus) && unix.Access(filepath.Join(parent, "cgroup.procs"), unix.W_OK) == nil {
			ok, err := g.makeDir(dir)
			if err != nil {
				return err
			}
			if ok {
				g.Dirs, g.Unified = append(g.Dirs, dir), dir
				return g.limitUnified(dir, l, memory, pids, cpus)
			}
		}
		if at == "/" || at == "." {
			return nil
		}
	}
}

func (g *Group) limitUnified(dir string, l Limits, memory, pids, cpus bool) error {
	if memory {
		if err := write(dir, "memory.max", strconv.FormatInt(l.Memory, 10)); err != nil {
			return err
		}
		if err := write(dir, "memory.swap.max", "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		g.Memory = dir
	}
	if pids {
		if err := write(dir, "pids.max", strconv.Itoa(l.PIDs+Overhead)); err != nil {
			return err
		}
		g.PIDs = dir
	}
	if cpus {
		if err := write(dir, "cpu.max", fmt.Sprintf("%d %d", quota(l.CPUs), cpuPeriod)); err != nil {
			return err
		}
		g.CPUs = dir
	}
	return nil
}

func quota(cpus float64) int { return max(1000, int(math.Floor(cpus*cpuPeriod))) }

// makeDir makes the session's folder and holds it. False without an error: it is not
// ours to make here.
func (g *Group) makeDir(dir string) (bool, error) {
	const tries = 1000 // a sweep is in its way for a moment at most
	for n := range tries {
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, os.ErrExist) && n == 0 {
			return false, fmt.Errorf("%s exists: the session has a sandbox already", dir)
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return false, nil
		}
		if f := hold(dir); f != nil {
			g.held = append(g.held, f)
			return true, nil
		}
		time.Sleep(time.Millisecond)
	}
	return false, fmt.Errorf("%s: somebody else holds it", dir)
}

// hold locks a folder, so that no sweep removes it while it is empty: before the
// sandbox starts in it. Nil: somebody holds it, or it is gone.
func hold(dir string) *os.File {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	var here, there unix.Stat_t
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil &&
		unix.Fstat(int(f.Fd()), &here) == nil && unix.Lstat(dir, &there) == nil && here.Ino == there.Ino {
		return f
	}
	f.Close()
	return nil
}

// young folders with the number of a process that lives may be an earlier version's,
// which did not hold them, about to be joined.
const young = time.Minute

// Sweep removes folders whose controller and warden were both killed, where this
// process could make one: those that nobody holds and in which nothing runs.
func Sweep() {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	if own, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		sweep(hierarchies(mountinfo, own))
	}
}

func sweep(hs []hierarchy) {
	for _, h := range hs {
		for at := h.own; ; at = filepath.Dir(at) {
			left, _ := filepath.Glob(filepath.Join(h.mount, at, Prefix+"*-*"))
			for _, dir := range left {
				if maybeJoined(dir) {
					continue
				}
				if f := hold(dir); f != nil {
					_ = unix.Rmdir(dir) // fails where something runs
					f.Close()
				}
			}
			if !h.v2 || at == "/" || at == "." {
				break
			}
		}
	}
}

func maybeJoined(dir string) bool {
	st, err := os.Stat(dir)
	if err != nil || time.Since(st.ModTime()) > young {
		return false
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), Prefix), "-")
	pid, err := strconv.Atoi(name)
	return err == nil && !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}

// Room says how many more tasks the cgroup of this process and those above it allow,
// and by which file; false if none says so.
func Room() (free int, file string, ok bool) {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0, "", false
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0, "", false
	}
	return room(hierarchies(mountinfo, own))
}

func room(hs []hierarchy) (free int, file string, ok bool) {
	for _, h := range hs {
		for at := h.own; h.v2 || slices.Contains(h.controllers, "pids"); at = filepath.Dir(at) {
			dir := filepath.Join(h.mount, at)
			most, err := strconv.Atoi(strings.TrimSpace(read(dir, "pids.max"))) // "max" is no number
			now, nerr := strconv.Atoi(strings.TrimSpace(read(dir, "pids.current")))
			if err == nil && nerr == nil && (!ok || most-now < free) {
				free, file, ok = most-now, filepath.Join(dir, "pids.max"), true
			}
			if at == "/" || at == "." {
				break
			}
		}
	}
	return free, file, ok
}

// OOMKills says how many processes the kernel killed for the memory limit.
func (g *Group) OOMKills() int64 {
	if g.Memory == "" {
		return 0
	}
	if g.Memory == g.Unified {
		return counter([]byte(read(g.Memory, "memory.events")), "oom_kill")
	}
	return counter([]byte(read(g.Memory, "memory.oom_control")), "oom_kill")
}

// RefusedTasks says how often the limit on tasks refused one.
func (g *Group) RefusedTasks() int64 {
	if g.PIDs == "" {
		return 0
	}
	return counter([]byte(read(g.PIDs, "pids.events")), "max")
}

// Remove removes the folders, and waits up to 4 seconds for the last dead
// process to leave them: one that was orphaned stays until init collects it.
// Folders that are gone are fine.
func Remove(dirs []string) error {
	var first error
	for _, d := range dirs {
		deadline := time.Now().Add(4 * time.Second)
		for {
			err := unix.Rmdir(d)
			if err == nil || errors.Is(err, os.ErrNotExist) {
				break
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				if first == nil {
					first = fmt.Errorf("removing cgroup %s: %w", d, err)
				}
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return first
}

func write(dir, name, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func read(dir, name string) string {
	b, _ := os.ReadFile(filepath.Join(dir, name))
	return string(b)
}

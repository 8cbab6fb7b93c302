package kernel

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
)

func init() {
	childproc.Register("probe-seccomp", seccompChild)
}

// FindCgroups finds where this process may make cgroups with the memory and
// pids controllers. It reads, and creates nothing.
func FindCgroups() Cgroups {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Cgroups{Why: err.Error()}
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return Cgroups{Why: err.Error()}
	}
	return findCgroups(parseCgroupMounts(string(mountinfo)), parseOwnCgroups(string(own)))
}

func findCgroups(mounts []cgroupMount, own map[string]string) Cgroups {
	why := "no cgroup hierarchy is mounted"
	for _, m := range mounts {
		if m.version != 2 {
			continue
		}
		dir, ok := m.dir(own[""])
		if !ok {
			continue
		}
		c, w := cgroup2(dir, m.point)
		if c.Version == 2 {
			return c
		}
		why = w
	}
	one := Cgroups{Version: 1, Dirs: map[string]string{}}
	for _, m := range mounts {
		for _, controller := range []string{"memory", "pids", "cpu"} {
			if m.version != 1 || !slices.Contains(m.options, controller) {
				continue
			}
			dir, ok := m.dir(own[controller])
			if !ok {
				dir = m.point
			}
			if writable(dir) {
				one.Dirs[controller] = dir
			} else {
				why = dir + " is not writable by this user"
			}
		}
	}
	if one.Dirs["memory"] != "" && one.Dirs["pids"] != "" {
		return one
	}
	if len(one.Dirs) > 0 { // such as a kernel whose memory controller is of version 2 alone
		for _, controller := range []string{"memory", "pids"} {
			if one.Dirs[controller] == "" {
				why = "version 1 without a " + controller + " controller"
			}
		}
	}
	return Cgroups{Why: why}
}

// cgroup2 looks at the parent first: a cgroup that has processes cannot give
// its children controllers (the rule of no internal processes), so a sibling of
// our own is where a limit works. Moving a child there needs the right to write
// cgroup.procs of the common ancestor, which is the same directory.
func cgroup2(own, top string) (Cgroups, string) {
	candidates := []string{own}
	if own != top {
		candidates = []string{filepath.Dir(own), own}
	}
	why := ""
	for _, dir := range candidates {
		enabled, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
		controllers := strings.Fields(string(enabled))
		switch {
		case err != nil:
			why = err.Error()
		case !slices.Contains(controllers, "memory") || !slices.Contains(controllers, "pids"):
			why = fmt.Sprintf("%s hands on only the controllers %q", dir, controllers)
		case !writable(dir) || unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK) != nil:
			why = dir + " is not delegated to this user"
		default:
			c := Cgroups{Version: 2, Dirs: map[string]string{"memory": dir, "pids": dir}}
			if slices.Contains(controllers, "cpu") {
				c.Dirs["cpu"] = dir
			}
			return c, ""
		}
	}
	return Cgroups{}, why
}

// writable also sees read-only mounts, where access(2) gives EROFS.
func writable(dir string) bool {
	return unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS) == nil
}

func judgeCgroups(c Cgroups) Probe {
	switch c.Version {
	case 2:
		p := Probe{Status: OK, Found: "version 2, delegated at " + c.Dirs["memory"]}
		if c.Dirs["cpu"] == "" {
			p.Status = Limited
			p.Cost = "limits.cpus gives whole processors; one that asks for less than one is refused"
			p.Remedy = "systemd-run --user --scope -p Delegate=yes -p CPUWeight=100 bulkhead run …"
		}
		return p
	case 1:
		p := Probe{Status: OK, Found: "version 1, writable at " + c.Dirs["memory"]}
		if c.Dirs["cpu"] == "" {
			p.Status = Limited
			p.Cost = "limits.cpus gives whole processors; one that asks for less than one is refused"
		}
		return p
	}
	p := Probe{
		Status: Limited,
		Found:  "none that this user may use: " + c.Why,
		Cost:   "what has no cgroup below is limited by rlimits and by adding up, a moment late; limits.cpus then gives whole processors",
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		p.Remedy = "systemd-run --user --scope -p Delegate=yes bulkhead run …"
	}
	return p
}

// seccompFacts is what the child could do; an empty string is success.
type seccompFacts struct {
	Install string // a filter for all threads at once (TSYNC)
	Works   string // that another thread is refused the call
}

func probeSeccomp(ctx context.Context) Probe {
	p := Probe{
		Cost:   "no isolation: the system call filter is a wall that is never left out",
		Remedy: "use a kernel with CONFIG_SECCOMP_FILTER, and no outer sandbox that refuses seccomp(2)",
	}
	var f seccompFacts
	if err := child(ctx, "probe-seccomp", 0, &f); err != nil {
		p.Found = err.Error()
		return p
	}
	if f.Install != "" || f.Works != "" {
		p.Found = strings.TrimSpace(f.Install + " " + f.Works)
		return p
	}
	return Probe{Status: OK, Found: "a filter for all threads was loaded and refuses"}
}

// seccompChild refuses sethostname(2) to itself with an error that the kernel
// would not give, and tries it on a thread that existed before.
func seccompChild() int {
	const marker = unix.EXDEV
	attempt := make(chan struct{})
	outcome := make(chan error)
	ready := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		close(ready)
		<-attempt
		outcome <- unix.Sethostname(nil)
	}()
	<-ready
	runtime.LockOSThread()
	var f seccompFacts
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SETHOSTNAME, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(marker)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		f.Install = "no_new_privs: " + err.Error()
		return answer(f)
	}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	switch {
	case errno != 0:
		f.Install = "loading a filter: " + errno.Error()
		return answer(f)
	case r != 0:
		f.Install = fmt.Sprintf("a filter does not reach thread %d", r)
		return answer(f)
	}
	close(attempt)
	if err := <-outcome; err != marker {
		f.Works = fmt.Sprintf("a loaded filter does not refuse: %v", err)
	}
	return answer(f)
}

// callsCanWait asks for a listener that holds calls until they are answered, as the
// guard does, without a filter to listen to: the kernel looks at the flags first.
func callsCanWait() bool {
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, 0)
	return errno == unix.EFAULT
}

// judgeWrites says where writes into a folder of the host can be judged by name.
// scope is yama's setting, "" without yama.
func judgeWrites(wait bool, scope string) Probe {
	const only = "a workspace is ro or staged, and mounts are ro; rw and rw-no-delete are refused with exit code 12"
	looked := "kernel.yama.ptrace_scope=" + scope
	switch {
	case !wait:
		return Probe{Status: Limited, Found: "this kernel can't hold a call until it is judged", Cost: only, Remedy: "a kernel from 5.19 on, for example Debian 12's"}
	case scope == "2":
		return Probe{Status: Limited, Found: looked + ": nobody may look into a process of another", Cost: "in process isolation " + only,
			Remedy: "--isolation container, or: echo kernel.yama.ptrace_scope=1 | sudo tee /etc/sysctl.d/60-bulkhead.conf && sudo sysctl --system"}
	case scope == "3":
		return Probe{Found: looked + ": nobody may look into a process", Cost: "no container isolation; in process isolation " + only, Remedy: "boot without kernel.yama.ptrace_scope=3, which can't be changed later"}
	case scope == "":
		looked = "no yama in this kernel"
	}
	return Probe{Status: OK, Found: "can be judged by name (" + looked + ")"}
}

// nesting is what tells of a machine around this one.
type nesting struct {
	Container string // docker, podman, lxc, kubernetes, or ""
	WSL       string // "1", "2" or ""
	Interop   bool   // Windows programs can be started from here
}

func nestingFacts() nesting {
	var n nesting
	exists := func(p string) bool { _, err := os.Lstat(p); return err == nil }
	read := func(p string) string { b, _ := os.ReadFile(p); return strings.TrimSpace(string(b)) }
	switch {
	case exists("/.dockerenv"):
		n.Container = "docker"
	case exists("/run/.containerenv"):
		n.Container = "podman"
	case exists("/var/run/secrets/kubernetes.io"):
		n.Container = "kubernetes"
	default:
		n.Container = read("/run/systemd/container")
	}
	release := strings.ToLower(sysctl("kernel/osrelease"))
	if strings.Contains(release, "microsoft") {
		n.WSL = "1"
		if strings.Contains(release, "wsl2") || exists("/run/WSL") {
			n.WSL = "2"
		}
		n.Interop = strings.HasPrefix(read("/proc/sys/fs/binfmt_misc/WSLInterop"), "enabled") ||
			strings.HasPrefix(read("/proc/sys/fs/binfmt_misc/WSLInterop-late"), "enabled")
	}
	return n
}

func judgeNesting(n nesting) Probe {
	switch {
	case n.WSL == "1":
		return Probe{Found: "WSL 1: not a Linux kernel", Cost: "no isolation at all", Remedy: "wsl.exe --set-version <distribution> 2"}
	case n.WSL == "2" && n.Interop:
		return Probe{
			Status: Limited,
			Found:  "WSL 2 with Windows interoperability",
			Cost:   "Windows programs can be started from Linux; a sandbox is kept from it by the masked /run/WSL and by seccomp only",
			Remedy: `printf '[interop]\nenabled=false\n' | sudo tee -a /etc/wsl.conf && wsl.exe --shutdown`,
		}
	case n.WSL == "2":
		return Probe{Status: OK, Found: "WSL 2 without Windows interoperability"}
	case n.Container != "":
		return Probe{
			Status: Limited,
			Found:  "inside a container (" + n.Container + ")",
			Cost:   "what the outer container refuses (namespaces, a new /proc, devices) cannot be had inside; the lines above show what was tried",
		}
	}
	return Probe{Status: OK, Found: "not in a container"}
}

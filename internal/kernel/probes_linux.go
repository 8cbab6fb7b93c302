package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
)

// probeTime bounds each probe. The slowest honest one (bwrap on a loaded host)
// takes a tenth of it.
const probeTime = 5 * time.Second

// Examine makes all probes, in parallel. It returns within 6 seconds whatever
// the host does.
func Examine(ctx context.Context) Report {
	type made struct {
		i int
		p Probe
	}
	list := []struct {
		name string
		run  func(context.Context) Probe
	}{
		{ProbeKernel, probeKernel},
		{ProbeUserns, func(ctx context.Context) Probe { return judgeUserns(usernsFacts(ctx)) }},
		{ProbeBwrap, probeBwrap},
		{ProbeTUN, func(ctx context.Context) Probe { return judgeTUN(TUNUsable(), usernsFacts(ctx)) }},
		{ProbeLandlock, func(context.Context) Probe { return judgeLandlock(LandlockABI()) }},
		{ProbeSeccomp, probeSeccomp},
		{ProbeWrites, func(context.Context) Probe { return judgeWrites(callsCanWait(), sysctl("kernel/yama/ptrace_scope")) }},
		{ProbeCgroups, func(context.Context) Probe { return judgeCgroups(FindCgroups()) }},
		{ProbeNesting, func(context.Context) Probe { return judgeNesting(nestingFacts()) }},
		{ProbeGVisor, func(context.Context) Probe { return probeGVisor() }},
		{ProbeQEMU, func(context.Context) Probe { return probeQEMU() }},
		{ProbeKVM, probeKVM},
		{ProbeCurl, func(context.Context) Probe { return probeCurl() }},
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	results := make(chan made, len(list))
	r := Report{OS: runtime.GOOS, Arch: runtime.GOARCH, UID: os.Geteuid(), Probes: make([]Probe, len(list))}
	for i, l := range list {
		r.Probes[i] = Probe{Name: l.name, Found: fmt.Sprintf("no answer within %v", probeTime)}
		go func() {
			p := l.run(ctx)
			p.Name = l.name
			results <- made{i, p}
		}()
	}
	late := time.After(probeTime + time.Second)
collect:
	for range list {
		select {
		case m := <-results:
			r.Probes[m.i] = m.p
		case <-late:
			break collect
		}
	}
	limits := LimitsWatched
	switch FindCgroups().Version {
	case 2:
		limits = LimitsCgroup2
	case 1:
		limits = LimitsCgroup1
	}
	r.Summary = r.summarise(limits)
	return r
}

// child runs one of our own children until ctx ends and decodes its answer. It
// does not wait for a child that the kernel cannot kill.
func child(ctx context.Context, name string, cloneflags uintptr, answer any) error {
	cmd := exec.CommandContext(ctx, childproc.Self())
	cmd.Args = []string{childproc.Argv0(name)}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.WaitDelay = 200 * time.Millisecond
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if cloneflags != 0 {
		cmd.SysProcAttr.Cloneflags = cloneflags
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		out, err := cmd.Output()
		done <- result{out, err}
	}()
	var res result
	select {
	case res = <-done:
	case <-ctx.Done():
		select {
		case res = <-done:
		case <-time.After(time.Second):
			return fmt.Errorf("hangs and cannot be killed: %w", ctx.Err())
		}
	}
	if len(res.out) > 0 {
		if err := json.Unmarshal(res.out, answer); err == nil && ctx.Err() == nil {
			return nil
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case res.err != nil:
		return res.err
	}
	return errors.New("the probe gave no answer")
}

// answer ends a child with what it found.
func answer(v any) int {
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		return 1
	}
	return 0
}

func probeKernel(context.Context) Probe {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Probe{Found: err.Error()}
	}
	p := Probe{Status: OK, Found: "Linux " + unix.ByteSliceToString(u.Release[:])}
	major, minor := version(unix.ByteSliceToString(u.Release[:]))
	// 5.13 has the first Landlock, 5.9 close_range; nothing older is tested.
	if major < 5 || major == 5 && minor < 13 {
		p.Status = Missing
		p.Cost = "older than 5.13: no Landlock, and no isolation without it"
		p.Remedy = "run a distribution of 2022 or later, for example Debian 12"
	}
	return p
}

// version reads the first two numbers of "6.18.4-x" or "bubblewrap 0.8.0".
func version(s string) (major, minor int) {
	if i := strings.IndexAny(s, "0123456789"); i >= 0 {
		s = s[i:]
	}
	num := func() int {
		i := 0
		for i < len(s) && '0' <= s[i] && s[i] <= '9' {
			i++
		}
		n, _ := strconv.Atoi(s[:i])
		s = strings.TrimPrefix(s[i:], ".")
		return n
	}
	return num(), num()
}

// LandlockABI returns the version of Landlock that the running kernel offers,
// 0 without Landlock. One system call.
func LandlockABI() int {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(abi)
}

// landlockLacks says what an ABI below the index+1 cannot refuse (landlock(7)).
var landlockLacks = []struct {
	abi    int
	lacks  string
	kernel string
}{
	{2, "moving files between folders cannot be allowed selectively", "5.19"},
	{3, "truncating a read-only file is not refused by Landlock", "6.2"},
	{4, "TCP ports are not refused by Landlock", "6.7"},
	{5, "ioctls on devices are not refused by Landlock", "6.10"},
	{6, "signals and abstract sockets are not scoped by Landlock", "6.12"},
}

func judgeLandlock(abi int) Probe {
	if abi <= 0 {
		return Probe{
			Found:  "not in this kernel, or not enabled at boot",
			Cost:   "no isolation: it is the second wall around files, and what confines the gateway",
			Remedy: `echo 'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT lsm=landlock,lockdown,yama,integrity,apparmor"' | sudo tee /etc/default/grub.d/landlock.cfg && sudo update-grub && sudo reboot`,
		}
	}
	var lacks []string
	kernel := ""
	for _, l := range landlockLacks {
		if abi < l.abi {
			lacks = append(lacks, l.lacks)
			kernel = l.kernel
		}
	}
	p := Probe{Status: OK, Found: fmt.Sprintf("ABI %d", abi)}
	if len(lacks) > 0 {
		p.Status = Limited
		p.Cost = strings.Join(lacks, "; ") + " (namespaces and seccomp still refuse them)"
		p.Remedy = "a kernel from " + kernel + " on; on Debian 12: sudo apt install linux-image-6.12-" + runtime.GOARCH
	}
	return p
}

// trustedDirs are where tools are looked up: never on the PATH of the caller,
// which a workspace may have changed.
var trustedDirs = []string{"/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin", "/run/current-system/sw/bin"}

// FindTool returns the path of a program in a system directory. The file must
// belong to root and be writable by nobody else.
func FindTool(name string) (string, error) { return findTool(trustedDirs, name) }

func findTool(dirs []string, name string) (string, error) {
	if name == "" || strings.ContainsRune(name, '/') {
		return "", fmt.Errorf("%q is not the name of a program", name)
	}
	var refused error
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			continue
		}
		switch {
		case st.Mode&unix.S_IFMT != unix.S_IFREG || unix.Access(path, unix.X_OK) != nil:
			continue
		case st.Uid != 0 || st.Mode&0o022 != 0:
			refused = fmt.Errorf("%s can be changed by others than root (owner %d, mode %#o): not used", path, st.Uid, st.Mode&0o7777)
			continue
		}
		return path, nil
	}
	if refused != nil {
		return "", refused
	}
	return "", fmt.Errorf("%s is in none of %s", name, strings.Join(dirs, ", "))
}

func probeBwrap(ctx context.Context) Probe {
	const install = "sudo apt install bubblewrap   # or: dnf install bubblewrap, pacman -S bubblewrap"
	p := Probe{Cost: "no process isolation: bulkhead run refuses with exit code 12"}
	path, err := FindTool("bwrap")
	if err != nil {
		p.Found, p.Remedy = err.Error(), install
		return p
	}
	out, err := command(ctx, path, "--version")
	if err != nil {
		p.Found, p.Remedy = path+" --version: "+err.Error(), install
		return p
	}
	p.Found = path + " " + strings.TrimPrefix(out, "bubblewrap ")
	if st, err := os.Stat(path); err == nil && st.Mode()&fs.ModeSetuid != 0 {
		p.Found += ", setuid root"
	}
	truePath, err := FindTool("true")
	if err != nil {
		p.Found += ", not tried: " + err.Error()
		return p
	}
	// The namespaces of a sandbox, and the mounts that need rights of their own
	// (a new /proc is refused inside most containers).
	if _, err := command(ctx, path, "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts",
		"--unshare-cgroup-try", "--unshare-net", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev",
		"--tmpfs", "/tmp", "--die-with-parent", "--new-session", "--", truePath); err != nil {
		p.Found += ", but cannot make a sandbox: " + err.Error()
		p.Remedy = "mend the line user-namespaces first"
		if judgeNesting(nestingFacts()).Status != OK {
			p.Remedy = inContainerRemedy
		}
		return p
	}
	p.Status, p.Cost = OK, ""
	if major, minor := version(out); major == 0 && minor < 8 {
		p.Status = Limited
		p.Cost = "older than 0.8.0: --disable-userns is missing, further user namespaces inside are refused by seccomp alone"
		p.Remedy = install
	}
	return p
}

// command runs a tool with an empty environment and returns its first line; an
// error has the first line of what it complained about.
func command(ctx context.Context, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.WaitDelay = 200 * time.Millisecond
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out, complaint limitedBuffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended well; a child that another probe just forks has its pipe still open
	}
	if err != nil {
		if line := complaint.firstLine(); line != "" {
			err = errors.New(line)
		}
		return "", err
	}
	return out.firstLine(), nil
}

// limitedBuffer keeps the first 4 KiB.
type limitedBuffer struct{ b []byte }

func (l *limitedBuffer) Write(p []byte) (int, error) {
	l.b = append(l.b, p[:min(len(p), 4096-len(l.b))]...)
	return len(p), nil
}

func (l *limitedBuffer) firstLine() string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(l.b)), "\n")
	return line
}

func probeGVisor() Probe {
	if self, err := childproc.Path(); err == nil {
		if companion := filepath.Join(filepath.Dir(self), "bulkhead-runsc"); unix.Access(companion, unix.X_OK) == nil {
			return Probe{Status: OK, Found: companion}
		}
	}
	if path, err := FindTool("bulkhead-runsc"); err == nil {
		return Probe{Status: OK, Found: path}
	}
	return Probe{
		Found:  "no bulkhead-runsc beside this binary or in the system directories",
		Cost:   "no container isolation: bulkhead run --isolation container refuses with exit code 12",
		Remedy: "build both together: make build, and keep them in one folder",
	}
}

func probeQEMU() Probe {
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	if arch == "" {
		arch = runtime.GOARCH
	}
	path, err := FindTool("qemu-system-" + arch)
	if err != nil {
		pkg := map[string]string{"amd64": "qemu-system-x86", "arm64": "qemu-system-arm"}[runtime.GOARCH]
		return Probe{Found: err.Error(), Cost: "no vm isolation", Remedy: "sudo apt install " + orElse(pkg, "qemu-system")}
	}
	return Probe{Status: OK, Found: path}
}

func probeCurl() Probe {
	path, err := FindTool("curl")
	if err != nil {
		return Probe{Status: Limited, Found: err.Error(), Cost: "the demonstration (make demo) has no thief to send with", Remedy: "sudo apt install curl"}
	}
	return Probe{Status: OK, Found: path}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

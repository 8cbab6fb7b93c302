package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/bulkhead-dev/bulkhead/internal/door"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox"
	"golang.org/x/sys/unix"
)

// findings are what each attack met: an error's name, or "SUCCEEDED".
type findings map[string]string

func (f findings) met(name string, err error) {
	var errno syscall.Errno
	switch {
	case err == nil:
		f[name] = "SUCCEEDED"
	case errors.As(err, &errno):
		f[name] = unix.ErrnoName(errno)
	default:
		f[name] = err.Error()
	}
}

func (f findings) call(name string, nr uintptr, args ...uintptr) {
	var a [6]uintptr
	copy(a[:], args)
	_, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno == 0 {
		f.met(name, nil)
	} else {
		f.met(name, errno)
	}
}

// open only opens: nothing is ever written to a file that may be the host's.
func (f findings) open(path string, flags int) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		unix.Close(fd)
	}
	kind := "read "
	if flags&(unix.O_WRONLY|unix.O_RDWR) != 0 {
		kind = "write "
	}
	f.met(kind+path, err)
}

func (f findings) socket(name string, family, typ, proto int) {
	fd, err := unix.Socket(family, typ, proto)
	if err == nil {
		unix.Close(fd)
	}
	f.met("socket "+name, err)
}

// attack runs inside. args: a process id of the host, an abstract socket's
// name, a path of the host.
func attack(args []string) findings {
	runtime.LockOSThread()
	f := findings{}
	hostPID := number(args[0])
	str := func(s string) uintptr { p, _ := unix.BytePtrFromString(s); return uintptr(unsafe.Pointer(p)) }

	f.met("mount tmpfs", unix.Mount("none", "/tmp", "tmpfs", 0, ""))
	f.met("mount bind", unix.Mount("/usr", "/tmp", "", unix.MS_BIND, ""))
	f.met("mount proc", unix.Mount("none", "/tmp", "proc", 0, ""))
	f.met("mount cgroup", unix.Mount("none", "/tmp", "cgroup", 0, "memory"))
	f.met("remount /usr rw", unix.Mount("", "/usr", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	f.met("umount /usr", unix.Unmount("/usr", unix.MNT_DETACH))
	f.met("pivot_root", unix.PivotRoot("/tmp", "/tmp"))
	f.met("chroot", unix.Chroot("/tmp"))
	f.call("open_tree", unix.SYS_OPEN_TREE, ^uintptr(99), str("/usr"), 1)
	f.call("fsopen", unix.SYS_FSOPEN, str("tmpfs"), 0)
	f.call("move_mount", unix.SYS_MOVE_MOUNT, 0, str(""), 0, str("/tmp"), 0)
	f.call("mount_setattr", unix.SYS_MOUNT_SETATTR, 0, str("/usr"), 0, 0, 0)

	for name, flag := range map[string]int{"user": unix.CLONE_NEWUSER, "mnt": unix.CLONE_NEWNS, "net": unix.CLONE_NEWNET,
		"pid": unix.CLONE_NEWPID, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP, "time": unix.CLONE_NEWTIME} {
		f.met("unshare "+name, unix.Unshare(flag))
	}
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0) // the child, where there is one
	}
	if errno == 0 {
		f.met("clone newuser", nil)
	} else {
		f.met("clone newuser", errno)
	}
	f.call("clone3", unix.SYS_CLONE3, 0, 0)
	if fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY, 0); err == nil {
		f.met("setns", unix.Setns(fd, 0))
	}

	f.met("ptrace attach 1", unix.PtraceAttach(1))
	f.met("ptrace seize 1", unix.PtraceSeize(1))
	for _, p := range []string{"environ", "mem", "maps", "auxv"} {
		f.open("/proc/1/"+p, unix.O_RDONLY)
	}
	for _, p := range []string{"syscall", "stack", "personality"} { // judged when read
		_, err := os.ReadFile("/proc/1/" + p)
		f.met("read /proc/1/"+p, err)
	}
	f.open("/proc/1/mem", unix.O_RDWR)
	for _, p := range []string{"root", "exe", "cwd", "fd/3", "fd/0", "root/etc/passwd", "ns/mnt"} {
		f.open("/proc/1/"+p, unix.O_RDONLY)
	}
	_, err := os.Readlink("/proc/1/fd/3")
	f.met("readlink /proc/1/fd/3", err)
	f.met("write uid_map", os.WriteFile("/proc/self/uid_map", []byte("0 0 1"), 0))
	b := make([]byte, 8)
	local := []unix.Iovec{{Base: &b[0], Len: 8}}
	_, err = unix.ProcessVMReadv(1, local, []unix.RemoteIovec{{Base: 0x400000, Len: 8}}, 0)
	f.met("process_vm_readv 1", err)
	if fd, err := unix.PidfdOpen(1, 0); err == nil {
		_, err = unix.PidfdGetfd(fd, 3, 0)
		f.met("pidfd_getfd 1", err)
	}
	f.met("kill -SEGV 1", unix.Kill(1, unix.SIGSEGV))
	f.met("kill -KILL 1", unix.Kill(1, unix.SIGKILL))
	f.met("kill a host process", unix.Kill(hostPID, 0))
	f.open("/proc/"+args[0]+"/environ", unix.O_RDONLY)

	f.met("mknod char", unix.Mknod("/tmp/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	f.met("mknod block", unix.Mknod("/tmp/disk", unix.S_IFBLK|0o666, int(unix.Mkdev(254, 0))))
	// A whiteout needs no capability, and no mount refuses it: only Landlock does.
	f.met("mknod whiteout", unix.Mknod("/tmp/whiteout", unix.S_IFCHR|0o666, 0))
	f.call("open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, 0, 0, 0)

	f.call("keyctl", unix.SYS_KEYCTL, 0, ^uintptr(3), 0)
	f.call("add_key", unix.SYS_ADD_KEY, str("user"), str("canary"), str("x"), 1, ^uintptr(3))
	f.call("request_key", unix.SYS_REQUEST_KEY, str("user"), str("canary"), 0, 0)
	f.call("io_uring_setup", unix.SYS_IO_URING_SETUP, 1, 0)
	f.call("bpf", unix.SYS_BPF, 0, 0, 0)
	f.call("perf_event_open", unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0)
	f.call("userfaultfd", unix.SYS_USERFAULTFD, 1)
	f.call("kexec_load", unix.SYS_KEXEC_LOAD, 0, 0, 0, 0)
	f.call("init_module", unix.SYS_INIT_MODULE, 0, 0, 0)
	f.call("finit_module", unix.SYS_FINIT_MODULE, 0, 0, 0)
	f.call("delete_module", unix.SYS_DELETE_MODULE, str("nothing"), 0)
	f.call("reboot", unix.SYS_REBOOT, 0, 0, 0, 0)
	f.call("swapon", unix.SYS_SWAPON, str("/nothing"), 0)
	f.call("acct", unix.SYS_ACCT, str("/nothing"))
	f.call("quotactl", unix.SYS_QUOTACTL, 0, 0, 0, 0)
	f.call("syslog", unix.SYS_SYSLOG, 10, 0, 0)
	f.call("sethostname", unix.SYS_SETHOSTNAME, str("x"), 1)
	f.call("fanotify_init", unix.SYS_FANOTIFY_INIT, 0, 0)
	f.call("unknown number", 5000)
	f.call("personality READ_IMPLIES_EXEC", unix.SYS_PERSONALITY, 0x400000)

	f.socket("packet", unix.AF_PACKET, unix.SOCK_RAW, 0)
	f.socket("raw icmp", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	f.socket("raw ip", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	f.socket("raw ip6", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
	f.socket("vsock", unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	f.socket("netfilter", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	f.socket("uevent", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT)
	for family := range 46 {
		switch family {
		case unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK:
			continue
		}
		for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_RAW, unix.SOCK_SEQPACKET} {
			f.socket(fmt.Sprintf("family %d type %d", family, typ), family, typ, 0)
		}
	}
	_, err = net.DialTimeout("unix", args[1], time.Second)
	f.met("host's abstract socket", err)
	f.open(args[2], unix.O_RDONLY)

	for _, p := range []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches", "/proc/sys/kernel/hostname",
		"/proc/sys/net/ipv4/ip_forward", "/proc/sys/fs/binfmt_misc/register", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/proc/mtrr",
		"/proc/timer_list", "/proc/acpi/wakeup", "/proc/scsi/scsi", "/sys/kernel/uevent_helper",
		"/sys/fs/cgroup/memory/release_agent", binary, "/usr/bin/env", "/etc/passwd"} {
		f.open(p, unix.O_WRONLY)
	}
	for _, p := range []string{"/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/kallsyms", "/proc/kpageflags", "/proc/slabinfo", "/proc/timer_list", "/proc/iomem",
		"/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/net/tun", "/dev/kvm", "/dev/console", "/run/docker.sock", "/var/run/docker.sock", "/etc/shadow", "/root"} {
		f.open(p, unix.O_RDONLY)
	}
	// The supervisor's children that lead a terminal.
	jobs, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, j := range jobs {
		if strings.TrimSpace(read(j)) == "bulkhead-job" {
			pid := number(strings.Split(j, "/")[2])
			f.met("ptrace job", unix.PtraceAttach(pid))
			f.open("/proc/"+strconv.Itoa(pid)+"/mem", unix.O_RDWR)
		}
	}
	// Where there is a terminal.
	if tty, err := unix.Open("/dev/tty", unix.O_RDWR, 0); err == nil {
		c := byte('x')
		for name, req := range map[string]uintptr{"TIOCSTI": unix.TIOCSTI, "TIOCSTI with high bits": 1<<32 | unix.TIOCSTI, "TIOCLINUX": 0x541C, "TIOCSETD": unix.TIOCSETD} {
			f.call(name, unix.SYS_IOCTL, uintptr(tty), req, uintptr(unsafe.Pointer(&c)))
		}
	}
	return f
}

// ownAffair is what a foreign kernel does for anyone, in its own memory: no
// namespace, node, log or device of the host is touched by it.
var ownAffair = map[string]bool{"clone newuser": true, "unshare cgroup": true, "unshare time": true, "read /proc/1/ns/mnt": true,
	"mknod char": true, "mknod block": true, "mknod whiteout": true, "socket uevent": true, "syslog": true,
	"write /proc/sysrq-trigger": true, "read /dev/net/tun": true}

// testAttacks runs every attack inside: none may succeed. Those whose refusal
// must be ours and not the host's luck are compared by error.
func testAttacks(t *testing.T, b sandbox.Backend) {
	name := fmt.Sprintf("@bulkhead-canary-%d", time.Now().UnixNano())
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	canary := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(canary, []byte("canary"), 0o644); err != nil {
		t.Fatal(err)
	}
	i := Prepare(t, b, Spec(sandbox.NetNone))
	// A process id that surely means nobody inside.
	host := strconv.Itoa(os.Getpid())
	_, s := terminal(t, i, "sh", "-c", Probe+" attack "+host+" "+name+" "+canary+" > /tmp/findings; echo fini''shed")
	s.expect("finished")
	var f findings
	out, _ := Output(t, i, "", "cat", "/tmp/findings")
	if err := jsonDecode(out, &f); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	if len(f) < 100 {
		t.Errorf("only %d attacks ran", len(f))
	}
	for what, met := range f {
		switch {
		case met != "SUCCEEDED":
		case traits.ForeignKernel && ownAffair[what]:
		case what == "kill -KILL 1":
			// A signal that the kernel drops for pid 1 "succeeds"; the sandbox
			// still answers below.
		default:
			t.Errorf("%s: succeeded", what)
		}
	}
	for what, want := range map[string]string{
		"unshare user": "EPERM", "unshare time": "EPERM", "clone newuser": "EPERM", "clone3": "ENOSYS", "setns": "EPERM", "mount tmpfs": "EPERM",
		"open_tree": "EPERM", "ptrace attach 1": "EPERM", "ptrace seize 1": "EPERM", "keyctl": "EPERM", "add_key": "EPERM", "request_key": "EPERM",
		"io_uring_setup": "ENOSYS", "bpf": "EPERM", "perf_event_open": "EPERM", "userfaultfd": "EPERM", "unknown number": "ENOSYS",
		"socket packet": "EAFNOSUPPORT", "socket vsock": "EAFNOSUPPORT", "socket raw icmp": "EAFNOSUPPORT", "TIOCSTI": "EPERM",
		"TIOCSTI with high bits": "EPERM", "TIOCLINUX": "EPERM", "process_vm_readv 1": "EPERM", "pidfd_getfd 1": "EPERM", "kill a host process": "ESRCH",
		"open_by_handle_at": "EPERM", "mknod whiteout": "EACCES", "ptrace job": "EPERM", "personality READ_IMPLIES_EXEC": "EPERM", "read " + canary: "ENOENT",
	} {
		if f[what] != want && !traits.ForeignKernel {
			t.Errorf("%s: %q, want %s", what, f[what], want)
		}
	}
	if _, code := Output(t, i, "", Probe, "foreign"); runtime.GOARCH == "amd64" && !traits.ForeignKernel && code != 128+int(unix.SIGSYS) {
		t.Errorf("a system call of another architecture: exit %d, want %d", code, 128+int(unix.SIGSYS))
	}
	if out, _ := Output(t, i, "", "echo", "alive"); out != "alive\n" {
		t.Errorf("after the attacks: %q", out)
	}
}

func testIsolation(t *testing.T, b sandbox.Backend) {
	t.Setenv("BULKHEAD_HOST_SECRET", "canary")
	for name, network := range map[string]sandbox.NetworkKind{"none": sandbox.NetNone, "relay": sandbox.NetRelay} {
		i := Prepare(t, b, Spec(network))
		var p Posture
		Ask(t, i, &p, "posture")
		mine := Namespaces("self")
		for k, v := range p.Namespaces {
			if v == "" && traits.ForeignKernel {
				continue // gVisor has no such namespace to show
			}
			if v == mine[k] || v == "" {
				t.Errorf("network %s: the %s namespace is the host's (%q)", name, k, v)
			}
		}
		for _, iface := range p.Interfaces {
			if !strings.HasPrefix(iface, "lo ") {
				t.Errorf("network %s has %s", name, iface)
			}
		}
		if len(p.Routes) > 0 {
			t.Errorf("network %s has routes %v", name, p.Routes)
		}
		for _, proc := range p.Processes {
			if proc != "1 bulkhead-guest" {
				t.Errorf("visible process %q", proc)
			}
		}
		if strings.Join(p.Env, ",") != strings.Join(Env, ",") {
			t.Errorf("environment %q", p.Env)
		}
		if out, _ := Output(t, i, "", "sh", "-c", "cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'"); strings.Contains(out, "canary") {
			t.Error("the host's environment is visible inside")
		}
		pid1 := Namespaces(strconv.Itoa(i.PID()))
		if traits.ForeignKernel {
			if pid1["pid"] == mine["pid"] {
				t.Errorf("PID %d is not the sandbox's: %v", i.PID(), pid1)
			}
		} else if pid1["pid"] != p.Namespaces["pid"] {
			t.Errorf("PID %d is not the sandbox's: %v", i.PID(), pid1)
		}
	}
}

func testRelay(t *testing.T, b sandbox.Backend) {
	i := Prepare(t, b, Spec(sandbox.NetRelay))
	l, err := door.Listener(i.Link())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "from outside")
			c.Close()
		}
	}()
	out, code := Output(t, i, "", "bash", "-c", fmt.Sprintf("cat < /dev/tcp/127.0.0.1/%d", sandbox.RelayPort))
	if out != "from outside\n" || code != 0 {
		t.Errorf("over the relay: %q, %d", out, code)
	}
	if out, code := Output(t, i, "", "bash", "-c", "timeout 2 bash -c 'cat < /dev/tcp/192.0.2.1/80'"); code == 0 {
		t.Errorf("past the relay: %q", out)
	}
}

// testPorts: what listens inside for a port of the host is served outside, and a
// port inside is reached from outside.
func testPorts(t *testing.T, b sandbox.Backend) {
	const port = 14321
	spec := Spec(sandbox.NetNone)
	spec.HostPorts = []int{port}
	i := Prepare(t, b, spec)
	all := i.Listeners()
	if len(all) == 0 {
		t.Fatal("no listener")
	}
	for _, l := range all {
		if l.Port != port {
			t.Errorf("a listener for port %d", l.Port)
		}
		in, err := door.Listener(l.File)
		l.File.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		go func() {
			for {
				c, err := in.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					line := make([]byte, 64)
					n, _ := c.Read(line)
					fmt.Fprintf(c, "outside got %s", line[:n])
				}()
			}
		}()
	}
	for _, address := range []string{"127.0.0.1", "::1"} {
		out, code := Output(t, i, "", "bash", "-c", fmt.Sprintf("exec 5<>/dev/tcp/%s/%d && echo %s >&5 && cat <&5", address, port, address))
		if out != "outside got "+address+"\n" || code != 0 {
			t.Errorf("from inside by %s: %q, %d", address, out, code)
		}
	}
	var done sync.WaitGroup
	for n := range 40 {
		done.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			c, err := i.Dial(ctx, port)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			fmt.Fprintf(c, "%d\n", n)
			text, err := io.ReadAll(c)
			if string(text) != fmt.Sprintf("outside got %d\n", n) {
				t.Errorf("connection %d: %q, %v", n, text, err)
			}
		})
	}
	done.Wait()
	if c, err := i.Dial(context.Background(), 9); err == nil {
		c.Close()
		t.Error("connected to a port where nobody listens")
	}
}

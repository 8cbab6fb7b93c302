//go:build linux

package seccomp

import (
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// run executes the assembled filter as the kernel does, on one call.
func run(t *testing.T, o Options, audit uint32, nr uint32, args ...uint64) uint32 {
	t.Helper()
	raw, err := Program(o)
	if err != nil {
		t.Fatal(err)
	}
	insts, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter holds instructions that x/net/bpf does not know")
	}
	vm, err := bpf.NewVM(insts)
	if err != nil {
		t.Fatal(err)
	}
	// The VM loads big-endian (network order); the kernel loads words of
	// seccomp_data in the machine's order. Each word is stored accordingly.
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[0:], nr)
	binary.BigEndian.PutUint32(data[4:], audit)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[16+8*i:], uint32(a))
		binary.BigEndian.PutUint32(data[16+8*i+4:], uint32(a>>32))
	}
	n, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

func native(t *testing.T) *arch.Info {
	t.Helper()
	info, err := arch.GetInfo("")
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func TestDecisions(t *testing.T) {
	info := native(t)
	const allow = unix.SECCOMP_RET_ALLOW
	high := uint64(1) << 32
	for _, c := range []struct {
		name string
		o    Options
		call string
		args []uint64
		want uint32
	}{
		{"plain", Options{}, "read", nil, allow},
		{"ptrace stays", Options{}, "ptrace", nil, allow},
		{"process_madvise stays", Options{}, "process_madvise", nil, allow},
		{"landlock stays", Options{}, "landlock_restrict_self", nil, allow},
		{"fork", Options{}, "clone", []uint64{uint64(unix.SIGCHLD)}, allow},
		{"thread", Options{}, "clone", []uint64{unix.CLONE_VM | unix.CLONE_THREAD}, allow},
		{"clone newuser", Options{}, "clone", []uint64{unix.CLONE_NEWUSER | uint64(unix.SIGCHLD)}, deny(unix.EPERM)},
		{"clone newns", Options{}, "clone", []uint64{unix.CLONE_NEWNS}, deny(unix.EPERM)},
		{"clone newuser with a high bit", Options{}, "clone", []uint64{high | unix.CLONE_NEWUSER}, deny(unix.EPERM)},
		{"clone3", Options{}, "clone3", nil, deny(unix.ENOSYS)},
		{"unshare fs", Options{}, "unshare", []uint64{unix.CLONE_FS}, allow},
		{"unshare time", Options{}, "unshare", []uint64{unix.CLONE_NEWTIME}, deny(unix.EPERM)},
		{"io_uring", Options{}, "io_uring_setup", nil, deny(unix.ENOSYS)},
		{"mount", Options{}, "mount", nil, deny(unix.EPERM)},
		{"open_tree", Options{}, "open_tree", nil, deny(unix.EPERM)},
		{"keyctl", Options{}, "keyctl", nil, deny(unix.EPERM)},
		{"TIOCSTI", Options{}, "ioctl", []uint64{0, unix.TIOCSTI}, deny(unix.EPERM)},
		{"TIOCSTI, high bit", Options{}, "ioctl", []uint64{0, high | unix.TIOCSTI}, deny(unix.EPERM)},
		{"TIOCLINUX", Options{}, "ioctl", []uint64{0, 0x541c}, deny(unix.EPERM)},
		{"TCGETS", Options{}, "ioctl", []uint64{0, unix.TCGETS}, allow},
		{"sign-extended ioctl (musl)", Options{}, "ioctl", []uint64{0, 0xffffffff80045430}, allow},
		{"inet", Options{}, "socket", []uint64{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC}, allow},
		{"inet6 udp", Options{}, "socket", []uint64{unix.AF_INET6, unix.SOCK_DGRAM}, allow},
		{"tcp by number", Options{}, "socket", []uint64{unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP}, allow},
		{"mptcp (Go's listeners)", Options{}, "socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, allow},
		{"udp by number", Options{}, "socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP}, allow},
		{"sctp", Options{}, "socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, deny(unix.EAFNOSUPPORT)},
		{"smc", Options{}, "socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, 256}, deny(unix.EAFNOSUPPORT)},
		{"udplite", Options{}, "socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE}, deny(unix.EAFNOSUPPORT)},
		{"ping", Options{}, "socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, deny(unix.EAFNOSUPPORT)},
		{"own limits", Options{}, "prlimit64", []uint64{0, unix.RLIMIT_NOFILE, 0x7fff00000000}, allow},
		{"limits of others, read", Options{}, "prlimit64", []uint64{1, unix.RLIMIT_NOFILE, 0}, allow},
		{"limits of others, set", Options{}, "prlimit64", []uint64{1, unix.RLIMIT_NOFILE, 0x7fff00000000}, deny(unix.EPERM)},
		{"unix", Options{}, "socket", []uint64{unix.AF_UNIX, unix.SOCK_SEQPACKET}, allow},
		{"route", Options{}, "socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW | unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE}, allow},
		{"netfilter", Options{}, "socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, deny(unix.EAFNOSUPPORT)},
		{"raw", Options{}, "socket", []uint64{unix.AF_INET, unix.SOCK_RAW}, deny(unix.EAFNOSUPPORT)},
		{"raw, high bits", Options{}, "socket", []uint64{high | unix.AF_INET, high | unix.SOCK_RAW}, deny(unix.EAFNOSUPPORT)},
		{"raw, unknown flag", Options{}, "socket", []uint64{unix.AF_INET, unix.SOCK_STREAM | 0x100}, deny(unix.EAFNOSUPPORT)},
		{"shm huge", Options{BoundShm: true}, "shmget", []uint64{0, high}, deny(unix.ENOMEM)},
		{"packet", Options{}, "socket", []uint64{unix.AF_PACKET, unix.SOCK_RAW}, deny(unix.EAFNOSUPPORT)},
		{"vsock", Options{}, "socket", []uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, deny(unix.EAFNOSUPPORT)},
		{"alg", Options{}, "socket", []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET}, deny(unix.EAFNOSUPPORT)},
		{"pair", Options{}, "socketpair", []uint64{unix.AF_UNIX}, allow},
		{"tipc pair", Options{}, "socketpair", []uint64{unix.AF_TIPC}, deny(unix.EAFNOSUPPORT)},
		{"personality query", Options{}, "personality", []uint64{0xffffffff}, allow},
		{"personality debugger", Options{}, "personality", []uint64{0x40000}, allow},
		{"READ_IMPLIES_EXEC", Options{}, "personality", []uint64{0x400000}, deny(unix.EPERM)},
		{"affinity free", Options{}, "sched_setaffinity", nil, allow},
		{"affinity pinned", Options{PinCPUs: true}, "sched_setaffinity", nil, deny(unix.EPERM)},
		{"shm free", Options{}, "shmget", []uint64{0, 1 << 30}, allow},
		{"shm bounded", Options{BoundShm: true}, "shmget", []uint64{0, 1 << 30}, deny(unix.ENOMEM)},
		{"shm small", Options{BoundShm: true}, "shmget", []uint64{0, 4096}, allow},
	} {
		t.Run(c.name, func(t *testing.T) {
			nr, ok := info.SyscallNames[c.call]
			if !ok {
				t.Fatalf("%s is not in the tables", c.call)
			}
			if got := run(t, c.o, uint32(info.ID), uint32(nr), c.args...); got != c.want {
				t.Errorf("%s%v = %#x, want %#x", c.call, c.args, got, c.want)
			}
		})
	}
	if got := run(t, Options{}, uint32(info.ID), 5000); got != deny(unix.ENOSYS) {
		t.Errorf("unknown number = %#x, want ENOSYS", got)
	}
	if got := run(t, Options{}, uint32(arch.I386.ID), 1); got != unix.SECCOMP_RET_KILL_PROCESS {
		t.Errorf("i386 = %#x, want kill", got)
	}
	if runtime.GOARCH == "amd64" {
		if got := run(t, Options{}, uint32(info.ID), 0x40000000|39); got != unix.SECCOMP_RET_KILL_PROCESS {
			t.Errorf("x32 = %#x, want kill", got)
		}
	}
}

// A misspelt name would silently deny nothing: each must exist somewhere.
func TestNamesExist(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rules(Options{PinCPUs: true, BoundShm: true}) {
		if r.why == "" || r.errno == 0 {
			t.Errorf("%v: a rule needs an error and a reason", r.syscalls)
		}
		for _, n := range r.syscalls {
			if seen[n] {
				t.Errorf("%s is ruled twice", n)
			}
			seen[n] = true
			known := false
			for _, a := range []*arch.Info{arch.X86_64, arch.AARCH64, arch.I386, arch.ARM} {
				if _, ok := a.SyscallNames[n]; ok {
					known = true
				}
			}
			if !known {
				t.Errorf("%s is a system call of no architecture", n)
			}
		}
	}
}

// The whole table, so that a library update shows what it newly lets in.
func TestEveryKnownCallIsDecided(t *testing.T) {
	info := native(t)
	denied := map[string]bool{}
	for _, d := range Denials(Options{}) {
		if !d.Partly {
			denied[d.Syscall] = true
		}
	}
	for name, nr := range info.SyscallNames {
		got := run(t, Options{}, uint32(info.ID), uint32(nr))
		if allowed := got == unix.SECCOMP_RET_ALLOW; allowed == denied[name] && name != "socket" && name != "socketpair" {
			t.Errorf("%s: %#x, listed as denied: %v", name, got, denied[name])
		}
	}
}

func BenchmarkProgram(b *testing.B) {
	for b.Loop() {
		if _, err := Program(Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

package seccomp

import "golang.org/x/sys/unix"

// rule denies system calls. With only, the calls are allowed for the arguments
// listed and denied for all others; with when, the other way round.
type rule struct {
	syscalls []string
	errno    unix.Errno
	only     []alternative
	when     []alternative
	why      string
}

func (r rule) conditional() bool { return r.only != nil || r.when != nil }

const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

func rules(o Options) []rule {
	rs := []rule{
		{why: "its operations pass no system call filter",
			syscalls: []string{"io_uring_setup", "io_uring_enter", "io_uring_register"}, errno: unix.ENOSYS},
		{why: "its flags lie behind a pointer that a filter can't read; callers fall back to clone",
			syscalls: []string{"clone3"}, errno: unix.ENOSYS},
		{why: "a new namespace gives back capabilities and opens more of the kernel",
			syscalls: []string{"clone"}, errno: unix.EPERM, when: anyBit(0, newNamespaces)},
		{why: "a new namespace gives back capabilities and opens more of the kernel",
			syscalls: []string{"unshare"}, errno: unix.EPERM, when: anyBit(0, newNamespaces|unix.CLONE_NEWTIME)},
		{why: "enters other namespaces", syscalls: []string{"setns"}, errno: unix.EPERM},
		{why: "changes the mounts that the boundary is made of", errno: unix.EPERM,
			syscalls: []string{"mount", "umount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "open_tree_attr",
				"fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr"}},
		{why: "kernel keyrings are shared with the host's user", errno: unix.EPERM,
			syscalls: []string{"keyctl", "add_key", "request_key"}},
		{why: "loads programs into the kernel", syscalls: []string{"bpf"}, errno: unix.EPERM},
		{why: "samples the kernel and other processes", syscalls: []string{"perf_event_open", "lookup_dcookie"}, errno: unix.EPERM},
		{why: "stops the kernel in the middle of a copy, which makes its races easy to win",
			syscalls: []string{"userfaultfd"}, errno: unix.EPERM},
		{why: "replaces or extends the running kernel", errno: unix.EPERM,
			syscalls: []string{"kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "create_module"}},
		{why: "administers the host", errno: unix.EPERM,
			syscalls: []string{"reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "settimeofday", "stime", "clock_settime",
				"sethostname", "setdomainname", "syslog", "vhangup", "fanotify_init"}},
		{why: "opens files by inode number, past every path rule", syscalls: []string{"open_by_handle_at"}, errno: unix.EPERM},
		{why: "moves pages of memory between nodes; long list of kernel bugs", errno: unix.EPERM,
			syscalls: []string{"move_pages", "migrate_pages"}},
		{why: "direct hardware access", syscalls: []string{"iopl", "ioperm"}, errno: unix.EPERM},
		{why: "segment descriptors for 16-bit code; long list of kernel bugs", syscalls: []string{"modify_ldt"}, errno: unix.EPERM},
		{why: "obsolete", errno: unix.ENOSYS,
			syscalls: []string{"uselib", "nfsservctl", "_sysctl", "sysfs", "ustat", "vserver", "get_kernel_syms", "query_module"}},
		{why: "some personalities switch off protections of the kernel", errno: unix.EPERM, syscalls: []string{"personality"},
			// Query, Linux, Linux without address randomisation (debuggers), 32-bit uname, uname 2.6.
			only: anyOf(0, 0xffffffff, 0, 0x0040000, 0x0008, 0x0020000, 0x0020008)},
		{why: "lowers the limits of other processes, pid 1 included, which would then serve no further command",
			syscalls: []string{"prlimit64"}, errno: unix.EPERM,
			when: []alternative{{{arg: 0, op: bits32, value: ^uint32(0)}, {arg: 2, op: above64, value: 0}}}},
		{why: "only TCP, UDP, Unix sockets and route queries; no raw or packet sockets, nothing that loads a kernel module", errno: unix.EAFNOSUPPORT,
			syscalls: []string{"socket"}, only: sockets()},
		{why: "types into a terminal (TIOCSTI), pastes into a console (TIOCLINUX), loads line disciplines (TIOCSETD)",
			syscalls: []string{"ioctl"}, errno: unix.EPERM, when: anyOf(1, unix.TIOCSTI, 0x541C, unix.TIOCSETD)},
		{why: "only Unix socket pairs", errno: unix.EAFNOSUPPORT, syscalls: []string{"socketpair"}, only: anyOf(0, unix.AF_UNIX)},
	}
	if o.PinCPUs {
		rs = append(rs, rule{why: "the CPU limit is the affinity that the sandbox inherits",
			syscalls: []string{"sched_setaffinity"}, errno: unix.EPERM})
	}
	if o.BoundShm {
		rs = append(rs, rule{why: "the memory limit can't see unattached System V segments", syscalls: []string{"shmget"},
			errno: unix.ENOMEM, when: []alternative{{{arg: 1, op: above64, value: 64 << 10}}}})
	}
	return rs
}

// alternative holds if all its tests hold.
type alternative []test

// test looks at one argument. The 32-bit tests see the lower half only, as the
// kernel does for int arguments: with the whole register, a set upper half
// would slip through a denial.
type test struct {
	arg   int
	op    op
	mask  uint32 // equal32 only
	value uint32
}

type op uint8

const (
	equal32 op = iota // low half & mask == value
	bits32            // low half & value != 0
	above64           // whole argument > value
)

func anyBit(arg int, bits uint32) []alternative {
	return []alternative{{{arg: arg, op: bits32, value: bits}}}
}

func anyOf(arg int, values ...uint32) []alternative {
	var as []alternative
	for _, v := range values {
		as = append(as, alternative{{arg: arg, op: equal32, mask: ^uint32(0), value: v}})
	}
	return as
}

// sockets lists the allowed sockets as family, type and protocol.
func sockets() []alternative {
	var as []alternative
	add := func(family uint32, types []uint32, more ...test) {
		for _, typ := range types {
			as = append(as, append(alternative{
				{arg: 0, op: equal32, mask: ^uint32(0), value: family},
				{arg: 1, op: equal32, mask: ^uint32(unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC), value: typ},
			}, more...))
		}
	}
	add(unix.AF_UNIX, []uint32{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET})
	// Asking for SCTP, DCCP or SMC makes the host's kernel load their modules.
	for _, family := range []uint32{unix.AF_INET, unix.AF_INET6} {
		for _, protocol := range []uint32{0, unix.IPPROTO_TCP, unix.IPPROTO_MPTCP} {
			add(family, []uint32{unix.SOCK_STREAM}, test{arg: 2, op: equal32, mask: ^uint32(0), value: protocol})
		}
		for _, protocol := range []uint32{0, unix.IPPROTO_UDP} {
			add(family, []uint32{unix.SOCK_DGRAM}, test{arg: 2, op: equal32, mask: ^uint32(0), value: protocol})
		}
	}
	add(unix.AF_NETLINK, []uint32{unix.SOCK_RAW, unix.SOCK_DGRAM},
		test{arg: 2, op: equal32, mask: ^uint32(0), value: unix.NETLINK_ROUTE})
	return as
}

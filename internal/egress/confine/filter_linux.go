package confine

import (
	"fmt"
	"os"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// hot are the calls of every packet, first because the filter is a list.
var hot = []string{
	"futex", "read", "write", "epoll_pwait", "nanosleep", "writev", "readv", "ppoll", "recvmsg", "sendmsg",
}

// allowed is what the Go runtime, the poller, the netstack's link and sockets
// that somebody else opened or that socket and connect below make.
var allowed = []string{
	// memory
	"munmap", "madvise", "brk", "mincore",
	// threads and signals
	"exit", "exit_group", "gettid", "getpid", "sched_yield", "sched_getaffinity", "sigaltstack",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "restart_syscall",
	// time and randomness
	"clock_gettime", "clock_nanosleep", "gettimeofday", "getrandom",
	// descriptors
	"close", "fcntl", "fstat", "epoll_create1", "epoll_ctl", "epoll_wait", "eventfd2", "poll",
	// sockets
	"connect", "accept4", "getsockname", "getpeername", "getsockopt", "setsockopt",
	"sendto", "recvfrom", "shutdown",
}

// asked are calls by which libraries look around. They fail with EPERM, which
// the callers expect; ending the process would be a denial of service.
var asked = []string{
	"open", "openat", "openat2", "stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat",
	"getdents64", "getcwd", "uname", "prctl", "clone3", "prlimit64", "sysinfo", "getuid", "geteuid", "getgid", "getegid",
	"pipe2", "splice", "sendfile", "copy_file_range", "ioctl", "bind", "listen", "dup", "dup3", "pread64", "rseq", "membarrier",
	"kill", "tkill", "rt_sigqueueinfo", "pidfd_open", "socketpair",
}

// The runtime starts threads with these flags (runtime/os_linux.go); a clone
// that lacks one of them would make a process.
var threadFlags = []uint64{unix.CLONE_VM, unix.CLONE_FS, unix.CLONE_FILES, unix.CLONE_SIGHAND, unix.CLONE_THREAD}

const (
	newNamespace = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	flagsOfAny   = newNamespace | unix.CLONE_VFORK | unix.CLONE_PTRACE | unix.CLONE_PIDFD
	goSocket     = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
)

// refusal is one call that is on the list but not with these arguments: any of
// the alternatives, each of which is a conjunction, is refused.
type refusal struct {
	call   string
	action seccomp.Action
	when   []seccomp.ArgumentConditions
}

func refusals() []refusal {
	arg := func(i uint32, op seccomp.Operation, v uint64) seccomp.Condition {
		return seccomp.Condition{Argument: i, Operation: op, Value: v}
	}
	clone := []seccomp.ArgumentConditions{{arg(0, seccomp.BitsSet, flagsOfAny)}}
	for _, f := range threadFlags {
		clone = append(clone, seccomp.ArgumentConditions{arg(0, seccomp.BitsNotSet, f)})
	}
	exec := []seccomp.ArgumentConditions{{arg(2, seccomp.BitsSet, unix.PROT_EXEC)}}
	return []refusal{
		{"socket", seccomp.ActionErrno, []seccomp.ArgumentConditions{
			{arg(0, seccomp.NotEqual, unix.AF_INET), arg(0, seccomp.NotEqual, unix.AF_INET6)},
			{arg(1, seccomp.NotEqual, unix.SOCK_STREAM|goSocket), arg(1, seccomp.NotEqual, unix.SOCK_DGRAM|goSocket)},
			{arg(2, seccomp.NotEqual, 0)},
		}},
		{"clone", seccomp.ActionKillProcess, clone},
		// The runtime preempts its own threads by signals.
		{"tgkill", seccomp.ActionErrno, []seccomp.ArgumentConditions{{arg(0, seccomp.NotEqual, uint64(os.Getpid()))}}},
		{"mmap", seccomp.ActionErrno, exec},
		{"mprotect", seccomp.ActionErrno, exec},
	}
}

// policies are the filters as data: a list that decides by the call alone, and
// one filter for each call whose arguments matter. They are stacked, and the
// strictest answer counts. They are not one filter because go-seccomp-bpf 1.6
// does not load the call's number again after it looked at an argument: a
// second conditional call behind the first would be matched by an argument that
// the caller chooses.
func policies() ([]seccomp.Policy, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("confine: seccomp: %w", err)
	}
	known := func(names []string) (out []string) {
		for _, n := range names {
			if _, ok := info.SyscallNames[n]; ok { // open, stat, poll … exist on amd64 only
				out = append(out, n)
			}
		}
		return out
	}
	list := append(known(hot), known(allowed)...)
	var out []seccomp.Policy
	for _, r := range refusals() {
		list = append(list, r.call)
		var conditional []seccomp.NameWithConditions
		for _, c := range r.when {
			conditional = append(conditional, seccomp.NameWithConditions{Name: r.call, Conditions: c})
		}
		out = append(out, seccomp.Policy{
			DefaultAction: seccomp.ActionAllow,
			Syscalls:      []seccomp.SyscallGroup{{Action: r.action, NamesWithCondtions: conditional}},
		})
	}
	return append(out, seccomp.Policy{
		DefaultAction: seccomp.ActionKillProcess,
		Syscalls: []seccomp.SyscallGroup{
			{Action: seccomp.ActionAllow, Names: list},
			{Action: seccomp.ActionErrno, Names: known(asked)},
		},
	}), nil
}

// filtered loads the filters, the list last and for good: it is the one that
// forbids loading further ones.
func filtered() error {
	all, err := policies()
	if err != nil {
		return err
	}
	for _, p := range all {
		if err := seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: p}); err != nil {
			return fmt.Errorf("confine: %w; the gateway does not run without it", err)
		}
	}
	return nil
}

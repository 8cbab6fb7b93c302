package seccomp

import (
	"fmt"
	"runtime"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// writing are the calls by which a process makes, opens for writing, renames or
// removes what a path names. WithFlags of them are asked about only if their
// flags say so: reading stays at the kernel's own speed.
var (
	writing = []string{"creat", "mkdir", "mkdirat", "mknod", "mknodat", "symlink", "symlinkat", "link", "linkat",
		"rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "truncate", "bind", "umask"}
	withFlags = map[string]int{"open": 1, "openat": 2}
	// noticing are the calls that fail if the guard still has a copy of a descriptor
	// that it has handed over, which its caller has closed: what makes a file
	// executable (it would be busy), and locks that do not wait. They are asked about
	// where an argument has one of these bits, so that the guard lets that copy go first.
	// Modes with a bit that gives others the owner's rights it judges.
	noticing = []struct {
		name    string
		arg     int
		bits    uint32
		exactly bool
	}{
		{"chmod", 1, 0o6111, false}, {"fchmod", 1, 0o6111, false}, {"fchmodat", 2, 0o6111, false}, {"fchmodat2", 2, 0o6111, false},
		{"flock", 1, unix.LOCK_NB, false}, {"fcntl", 1, unix.F_OFD_SETLK, true},
	}
)

const openForWriting = unix.O_WRONLY | unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC

// Numbers gives the system calls of this machine by name.
func Numbers() (map[string]int, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("system call tables: %w", err)
	}
	return info.SyscallNames, nil
}

// Listen puts a second filter on the calling thread, which what it forks
// inherits: every call that writes by path, and what could notice that the guard is a
// moment behind, waits for an answer through the descriptor that is returned. openat2, whose flags lie behind a pointer, answers
// ENOSYS, as on an older kernel, and so do listeners of a process's own, of which the
// kernel allows one in all: they answer EINVAL. The caller has installed the filter of Install
// and stays on its thread. Linux 5.19 or newer: a call that is being answered
// can be ended by a deadly signal only, so nothing happens twice.
func Listen() (int, error) {
	prog, err := listenProgram()
	if err != nil {
		return -1, err
	}
	filter := make([]unix.SockFilter, len(prog))
	for i, in := range prog {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	fprog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(filter)
	if errno == unix.EINVAL {
		return -1, fmt.Errorf("writes into the workspace can't be watched: this kernel is older than Linux 5.19")
	}
	if errno != 0 {
		return -1, fmt.Errorf("writes into the workspace can't be watched: %w", errno)
	}
	return int(fd), nil
}

func listenProgram() ([]bpf.RawInstruction, error) {
	info, err := arch.GetInfo("")
	if err != nil {
		return nil, fmt.Errorf("system call tables: %w", err)
	}
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(info.ID), SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS},
		bpf.LoadAbsolute{Off: offsetNumber, Size: 4},
	}
	on := func(name string, then ...bpf.Instruction) {
		if nr, ok := info.SyscallNames[name]; ok {
			p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(nr), SkipTrue: uint8(len(then))})
			p = append(p, then...)
		}
	}
	for _, name := range []string{"openat", "open"} {
		on(name,
			bpf.LoadAbsolute{Off: uint32(offsetArgs + 8*withFlags[name]), Size: 4},
			bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.O_PATH, SkipTrue: 2}, // the kernel then forgets the others
			bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: openForWriting, SkipFalse: 1},
			bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF},
			bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
	}
	for _, name := range writing {
		on(name, bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF})
	}
	for _, c := range noticing {
		cond := bpf.JumpBitsSet
		if c.exactly {
			cond = bpf.JumpEqual
		}
		on(c.name,
			bpf.LoadAbsolute{Off: uint32(offsetArgs + 8*c.arg), Size: 4},
			bpf.JumpIf{Cond: cond, Val: c.bits, SkipFalse: 1},
			bpf.RetConstant{Val: unix.SECCOMP_RET_USER_NOTIF},
			bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
	}
	on("openat2", bpf.RetConstant{Val: deny(unix.ENOSYS)})
	on("seccomp",
		bpf.LoadAbsolute{Off: uint32(offsetArgs + 8), Size: 4},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, SkipFalse: 1},
		bpf.RetConstant{Val: deny(unix.EINVAL)},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW})
	prog, err := bpf.Assemble(append(p, bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}))
	if err != nil {
		return nil, fmt.Errorf("assembling the filter for writes: %w", err)
	}
	return prog, nil
}

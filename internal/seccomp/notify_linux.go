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
// inherits: every call that writes by path waits for an answer through the
// descriptor that is returned. openat2, whose flags lie behind a pointer, answers
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

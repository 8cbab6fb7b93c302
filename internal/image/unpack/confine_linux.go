package unpack

import (
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"unsafe"

	lib "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/seccomp"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
)

const (
	softMemory = 512 << 20
	maxData    = 3 << 30 // address space, of which Go takes more than it uses
)

var landlockByABI = []landlock.Config{landlock.V1, landlock.V2, landlock.V3, landlock.V4, landlock.V5, landlock.V6,
	landlock.V7, landlock.V8, landlock.V9, landlock.V10, landlock.V11}

// fill is what may be done in the folder: no device, socket or pipe, nothing run.
const fill = ll.AccessFSReadFile | ll.AccessFSReadDir | ll.AccessFSWriteFile | ll.AccessFSTruncate | ll.AccessFSRemoveDir | ll.AccessFSRemoveFile |
	ll.AccessFSMakeDir | ll.AccessFSMakeReg | ll.AccessFSMakeSym | ll.AccessFSRefer

// denied is everything that an unpacker has no use for and that the filter of
// sandboxes leaves to commands.
var denied = []string{
	"socket", "socketpair", "connect", "bind", "listen", "accept", "accept4", "sendto", "sendmsg", "sendmmsg",
	"execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_open", "pidfd_getfd", "pidfd_send_signal",
	"kill", "tkill", "mknod", "mknodat", "chown", "fchown", "lchown", "fchownat", "setxattr", "lsetxattr", "fsetxattr", "unshare", "memfd_create",
	"shmget", "msgget", "semget", "mq_open", "inotify_init", "inotify_init1",
}

// confine takes from this process, for good, all but one folder.
func confine(folder int) error {
	for _, l := range []struct {
		resource int
		value    uint64
	}{{unix.RLIMIT_CORE, 0}, {unix.RLIMIT_NOFILE, 1024}, {unix.RLIMIT_DATA, maxData}, {unix.RLIMIT_MEMLOCK, 0}} {
		var old unix.Rlimit
		if err := unix.Getrlimit(l.resource, &old); err != nil {
			return err
		}
		v := min(l.value, old.Max)
		if err := unix.Setrlimit(l.resource, &unix.Rlimit{Cur: v, Max: v}); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
	}
	abi, err := ll.LandlockGetABIVersion()
	if err != nil || abi < 2 {
		return errors.New("this kernel has no Landlock that is new enough (Linux 5.19, with landlock in the lsm= boot parameter)")
	}
	full := landlockByABI[min(abi, len(landlockByABI))-1]
	at := "/proc/self/fd/" + strconv.Itoa(folder)
	if switches.Off("unpacking") {
		at = "/"
	}
	if err := full.Restrict(landlock.PathAccess(fill&full.HandledAccessFS, at)); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	if err := withoutCapabilities(); err != nil {
		return err
	}
	if err := seccomp.Install(seccomp.Options{}); err != nil {
		return err
	}
	info, err := arch.GetInfo("")
	if err != nil {
		return err
	}
	var known []string
	for _, n := range denied {
		if _, ok := info.SyscallNames[n]; ok {
			known = append(known, n)
		}
	}
	return lib.LoadFilter(lib.Filter{NoNewPrivs: true, Flag: lib.FilterFlagTSync, Policy: lib.Policy{
		DefaultAction: lib.ActionAllow, Syscalls: []lib.SyscallGroup{{Action: lib.ActionErrno, Names: known}},
	}})
}

// withoutCapabilities is for root, who would have them in spite of Landlock.
func withoutCapabilities() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&none[0])), 0); errno != 0 {
		return fmt.Errorf("capabilities: %w", errno)
	}
	return nil
}

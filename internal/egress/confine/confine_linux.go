package confine

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// Apply confines the whole process for good.
func Apply() error {
	debug.SetMemoryLimit(SoftMemory)
	for _, l := range []struct {
		name     string
		resource int
		value    uint64
	}{
		{"core", unix.RLIMIT_CORE, 0},
		{"fsize", unix.RLIMIT_FSIZE, 0},
		{"memlock", unix.RLIMIT_MEMLOCK, 0},
		{"msgqueue", unix.RLIMIT_MSGQUEUE, 0},
		{"nofile", unix.RLIMIT_NOFILE, MaxFiles},
		{"data", unix.RLIMIT_DATA, MaxData},
	} {
		if err := limit(l.resource, l.value); err != nil {
			return fmt.Errorf("confine: limit %s: %w", l.name, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("confine: dumpable: %w", err)
	}
	if err := allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0); err != nil {
		return fmt.Errorf("confine: no_new_privs: %w", err)
	}
	if err := dropCapabilities(); err != nil {
		return err
	}
	if err := landlocked(); err != nil {
		return err
	}
	return filtered()
}

// limit lowers both limits, and keeps what is lower already.
func limit(resource int, value uint64) error {
	var old unix.Rlimit
	if err := unix.Getrlimit(resource, &old); err != nil {
		return err
	}
	v := min(value, old.Max)
	return unix.Setrlimit(resource, &unix.Rlimit{Cur: v, Max: v})
}

// dropCapabilities empties all five sets of every thread. The bounding set can
// only be emptied by who has CAP_SETPCAP; who has not, cannot gain from it
// either, with no_new_privs and without exec.
func dropCapabilities() error {
	if err := allThreads(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0); err != nil {
		return fmt.Errorf("confine: ambient capabilities: %w", err)
	}
	for c := uintptr(0); ; c++ {
		set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err != nil {
			break // one after the last that this kernel knows
		}
		if set == 0 {
			continue
		}
		if err := allThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0); err == unix.EPERM {
			break
		} else if err != nil {
			return fmt.Errorf("confine: bounding set: %w", err)
		}
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := allThreads(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&none[0])), 0, 0); err != nil {
		return fmt.Errorf("confine: capabilities: %w", err)
	}
	return nil
}

// StartBounded runs start, which starts a child process, on a thread with an
// empty capability bounding set: the child begins without capabilities and
// without the 2 ms that emptying the set of all its threads would cost it. Where
// that is not permitted the child has none to drop.
func StartBounded(start func() error) error {
	done := make(chan error, 1)
	boundedThread() <- func() { done <- start() }
	return <-done
}

// boundedThread is one thread for all starts of a process. It never ends: the
// end of a thread is the death of its children that asked for a signal then
// (PR_SET_PDEATHSIG), and any child may have been started from it before.
var boundedThread = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for c := uintptr(0); unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) == nil; c++ {
		}
		for f := range work {
			f()
		}
	}()
	return work
})

func allThreads(nr, a, b, c, d uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(nr, a, b, c, d, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func landlocked() error {
	abi, err := ll.LandlockGetABIVersion()
	if err != nil {
		return fmt.Errorf("confine: this kernel has no Landlock (%w); the gateway does not run without it\nboot with lsm=landlock,… or a kernel from 5.13 on", err)
	}
	versions := []landlock.Config{landlock.V1, landlock.V2, landlock.V3, landlock.V4, landlock.V5, landlock.V6, landlock.V7, landlock.V8, landlock.V9, landlock.V10, landlock.V11}
	cfg := versions[min(abi, len(versions))-1]
	// Connecting is the gateway's work; listening never is. Before ABI 4 Landlock
	// knows no ports, and the filter alone refuses to bind and to listen.
	if abi >= 4 {
		cfg.HandledAccessNet = ll.AccessNetBindTCP
	}
	if err := cfg.Restrict(); err != nil {
		return fmt.Errorf("confine: landlock: %w", err)
	}
	return nil
}

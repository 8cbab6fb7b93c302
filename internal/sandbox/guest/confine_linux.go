package guest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/bulkhead-dev/bulkhead/internal/seccomp"
	"github.com/bulkhead-dev/bulkhead/internal/switches"
	"github.com/landlock-lsm/go-landlock/landlock"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// landlockByABI are the strict configurations: file system and scopes only,
// because the network is a namespace of its own. A newer kernel gets the last.
var landlockByABI = []landlock.Config{landlock.V1, landlock.V2, landlock.V3, landlock.V4, landlock.V5, landlock.V6,
	landlock.V7, landlock.V8, landlock.V9, landlock.V10, landlock.V11}

const (
	accessRead  = llsys.AccessFSExecute | llsys.AccessFSReadFile | llsys.AccessFSReadDir
	accessWrite = accessRead | llsys.AccessFSWriteFile | llsys.AccessFSTruncate | llsys.AccessFSRemoveDir | llsys.AccessFSRemoveFile |
		llsys.AccessFSMakeDir | llsys.AccessFSMakeReg | llsys.AccessFSMakeSock | llsys.AccessFSMakeFifo | llsys.AccessFSMakeSym |
		llsys.AccessFSRefer
	accessDevices = accessWrite | llsys.AccessFSIoctlDev
	accessFile    = llsys.AccessFSExecute | llsys.AccessFSReadFile | llsys.AccessFSWriteFile | llsys.AccessFSTruncate | llsys.AccessFSIoctlDev
)

// hide makes this process one that nobody else in the sandbox can attach to or
// read: an undumpable process needs CAP_SYS_PTRACE, which nobody there has.
func hide(name string) error {
	// The whole process's name: prctl sets the thread's, which may be another.
	_ = os.WriteFile("/proc/self/comm", []byte(name), 0)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming undumpable: %w", err)
	}
	cname := append([]byte(name), 0)
	return unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&cname[0])), 0, 0, 0)
}

// forgetIgnored gives every signal that was ignored where bulkhead was started
// its default action: exec keeps ignored signals ignored, and what a command
// starts with is not to depend on that place.
func forgetIgnored() {
	const ignored, setSize = 1, 8
	type action struct{ handler, flags, restorer, mask uintptr } // struct sigaction of the kernel, 64 bit
	for sig := uintptr(1); sig <= 64; sig++ {
		var now action
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), setSize, 0, 0); errno == 0 && now.handler == ignored {
			var byDefault action
			unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&byDefault)), 0, setSize, 0, 0)
		}
	}
}

// confine applies s to this process for good. Nothing hostile has run before.
func confine(s Setup) error {
	if err := checkCapabilities(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if err := limit(s); err != nil {
		return err
	}
	if !switches.Off("descriptors") {
		if err := restrictPaths(s); err != nil {
			return err
		}
	}
	return seccomp.Install(seccomp.Options{PinCPUs: s.PinCPUs, BoundShm: s.BoundShm})
}

// checkCapabilities refuses to go on with any capability in any set: bwrap
// should have dropped them all.
func checkCapabilities() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("checking capabilities: %w", err)
	}
	sets := 0
	for line := range bytes.Lines(status) {
		name, value, ok := strings.Cut(string(line), ":")
		if !ok || !strings.HasPrefix(name, "Cap") {
			continue
		}
		sets++
		if strings.Trim(strings.TrimSpace(value), "0") != "" {
			return fmt.Errorf("a capability is left inside the sandbox (%s:%s)", name, strings.TrimSpace(value))
		}
	}
	if sets < 5 {
		return errors.New("checking capabilities: /proc/self/status doesn't list them")
	}
	return nil
}

func limit(s Setup) error {
	set := func(what string, resource int, n uint64) error {
		var had unix.Rlimit
		if err := unix.Getrlimit(resource, &had); err != nil {
			return fmt.Errorf("limit on %s: %w", what, err)
		}
		n = min(n, had.Max) // a lower one holds, and nobody here could raise it
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("limit on %s: %w", what, err)
		}
		return nil
	}
	err := set("core dumps", unix.RLIMIT_CORE, 0)
	if err == nil && s.DataLimit > 0 {
		err = set("memory", unix.RLIMIT_DATA, s.DataLimit)
	}
	if err == nil && s.TaskLimit > 0 {
		err = set("processes", unix.RLIMIT_NPROC, s.TaskLimit)
	}
	if err == nil && s.FileLimit > 0 {
		err = set("a file's size", unix.RLIMIT_FSIZE, s.FileLimit)
	}
	if err == nil && s.DescriptorLimit > 0 {
		err = set("descriptors", unix.RLIMIT_NOFILE, s.DescriptorLimit)
	}
	return err
}

func restrictPaths(s Setup) error {
	abi, err := llsys.LandlockGetABIVersion()
	if err != nil || abi < 1 {
		return errors.New("this kernel has no Landlock (Linux 5.13 or newer, with landlock in the lsm= boot parameter or CONFIG_LSM)")
	}
	full := landlockByABI[min(abi, len(landlockByABI))-1]
	cfg := landlock.Config{HandledAccessFS: full.HandledAccessFS, Scoped: full.Scoped}
	var rules []landlock.Rule
	add := func(access landlock.AccessFSSet, path string) error {
		st, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("landlock: %w", err)
		}
		if !st.IsDir() {
			access &= accessFile
		}
		rules = append(rules, landlock.PathAccess(access&cfg.HandledAccessFS, path))
		return nil
	}
	// "/" gives only listing: what may be read is given path by path.
	if err := add(llsys.AccessFSReadDir, "/"); err != nil {
		return err
	}
	for _, p := range append([]string{Dir}, s.ReadOnly...) {
		if err := add(accessRead, p); err != nil {
			return err
		}
	}
	for _, p := range append([]string{"/proc"}, s.Writable...) {
		if err := add(accessWrite, p); err != nil {
			return err
		}
	}
	if err := add(accessDevices, "/dev"); err != nil {
		return err
	}
	if err := cfg.Restrict(rules...); err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	return nil
}

// scopeThread puts the calling thread, and so what is forked from it, into a
// Landlock domain below pid 1's, from which pid 1 can't be signalled. Without
// it a command could crash its own supervisor; kernels before 6.12 lack it.
func scopeThread() error {
	abi, err := llsys.LandlockGetABIVersion()
	if err != nil || abi < 6 {
		return nil
	}
	// A domain denies linking and renaming between folders unless it handles
	// that right: it is handled, and given everywhere.
	fd, err := llsys.LandlockCreateRuleset(&llsys.RulesetAttr{HandledAccessFS: llsys.AccessFSRefer, Scoped: llsys.ScopeSignal}, 0)
	if err != nil {
		return fmt.Errorf("landlock scope: %w", err)
	}
	defer unix.Close(fd)
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("landlock scope: %w", err)
	}
	defer unix.Close(root)
	everywhere := llsys.PathBeneathAttr{AllowedAccess: llsys.AccessFSRefer, ParentFd: root}
	if err := llsys.LandlockAddPathBeneathRule(fd, &everywhere, 0); err != nil {
		return fmt.Errorf("landlock scope: %w", err)
	}
	if err := llsys.LandlockRestrictSelf(fd, 0); err != nil {
		return fmt.Errorf("landlock scope: %w", err)
	}
	return nil
}

// prepareThreads makes the Go runtime create now the threads it will ever
// need: when the sandbox has hit its limit on tasks, a thread that can't be
// created would end the process.
func prepareThreads(threads int) {
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), 4)) // each could want one more
	var all, done sync.WaitGroup
	all.Add(threads)
	done.Add(threads)
	for range threads {
		go func() {
			defer done.Done()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			all.Done()
			all.Wait()
		}()
	}
	done.Wait()
}

// closeOthers closes every descriptor but 0 to 2 and the given that somebody
// may have left open across exec. The runtime's own stay.
func closeOthers(keep ...int) error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("listing descriptors: %w", err)
	}
	for _, e := range entries {
		var fd int
		if _, err := fmt.Sscan(e.Name(), &fd); err != nil || fd <= 2 || slices.Contains(keep, fd) {
			continue
		}
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue // gone already (the listing itself), or the runtime's
		}
		if err := unix.Close(fd); err != nil {
			return fmt.Errorf("closing descriptor %d: %w", fd, err)
		}
	}
	return nil
}

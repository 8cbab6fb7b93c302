package container

import (
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest/frame"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"
	"github.com/bulkhead-dev/bulkhead/internal/seccomp"
	"golang.org/x/sys/unix"
)

// guardChild is the guard's name in the child registry.
const guardChild = "guard"

func init() { childproc.Register(guardChild, guardWrites) }

// goferRoot is where gVisor's file server puts the sandbox's tree in its own mount
// namespace (runsc/cmd/gofer.go), and so where the kernel says that it stands.
const goferRoot = "/root"

// Descriptors of the guard, as the cradle gives them.
const (
	guardConnFD     = 3
	guardListenerFD = 4 // a socket over which the listener comes
	guardOrdersFD   = 5
)

// startGuard starts the guard of writes, and returns the socket over which it gets
// its listener.
func startGuard(folders []guarded) (*os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours := os.NewFile(uintptr(ends[0]), "listener")
	defer unix.Close(ends[1])
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	null, err := os.OpenFile("/dev/null", os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	_, err = syscall.ForkExec(childproc.Self(), []string{childproc.Argv0(guardChild)}, &syscall.ProcAttr{
		Dir: "/", Env: []string{}, Files: []uintptr{null.Fd(), null.Fd(), 2, warden.DataFD, uintptr(ends[1]), r.Fd()},
		Sys: &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS},
	})
	unix.Close(warden.DataFD)
	if err == nil {
		err = gob.NewEncoder(w).Encode(folders)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		ours.Close()
		return nil, err
	}
	return ours, nil
}

// listen makes everything that this thread becomes ask the guard.
func listen(guard *os.File) error {
	defer guard.Close()
	fd, err := seccomp.Listen()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendmsg(int(guard.Fd()), []byte{0}, unix.UnixRights(fd), nil, 0)
}

// guardWrites is the guard: a process beside runsc that sees of the host the folders
// whose writes it judges. Landlock is not for it: it could then not read the calls of
// the sentry, which lies in no domain below its own.
func guardWrites() int {
	err := childproc.CloseInherited(guardConnFD, guardListenerFD, guardOrdersFD)
	if err == nil {
		err = serveGuard()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "guard:", err)
		return 1
	}
	return 0
}

func serveGuard() error {
	in := os.NewFile(guardOrdersFD, "orders")
	var folders []guarded
	if err := gob.NewDecoder(in).Decode(&folders); err != nil {
		return fmt.Errorf("orders: %w", err)
	}
	in.Close()
	if err := moveBeside(folders); err != nil {
		return err
	}
	unix.CloseOnExec(guardListenerFD)
	conn, err := frame.New(os.NewFile(guardConnFD, "control socket"))
	if err != nil {
		return err
	}
	return guest.ServeBeside(conn, confineGuard, takeListener)
}

func takeListener() (int, error) {
	defer unix.Close(guardListenerFD)
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(guardListenerFD, make([]byte, 1), rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("the listener: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return -1, errors.New("the listener did not come")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.New("the listener did not come")
	}
	return fds[0], nil
}

// moveBeside makes a root with the folders, and a proc, and nothing else.
func moveBeside(folders []guarded) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("separating mounts: %w", err)
	}
	const base, old = "/tmp", "/old"
	if err := unix.Mount("bulkhead", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("an empty root: %w", err)
	}
	for _, d := range []string{old, "/proc"} {
		if err := os.Mkdir(base+d, 0o755); err != nil {
			return err
		}
	}
	if err := bind("/proc", base+"/proc", safe|unix.MOUNT_ATTR_NOEXEC); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	for _, f := range folders {
		at := path.Join(base, goferRoot, f.Target)
		if err := (step{At: at, Own: true}).point(f.At); err != nil {
			return fmt.Errorf("%s: %w", f.Target, err)
		}
		if err := bind(f.At, at, safe); err != nil {
			return fmt.Errorf("%s: %w", f.Target, err)
		}
	}
	if err := unix.PivotRoot(base, base+old); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount(old, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving everything else: %w", err)
	}
	return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
}

// confineGuard leaves the guard what the sentry has of rights over files, since it
// opens for it. That it may read the sentry's memory comes from having made its user
// namespace.
func confineGuard() error {
	const keep = 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: keep, Permitted: keep}}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return err
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&data[0])), 0); errno != 0 {
		return fmt.Errorf("capabilities: %w", errno)
	}
	runtime.KeepAlive(&data)
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); errno != 0 {
		return fmt.Errorf("no_new_privs: %w", errno)
	}
	return seccomp.Install(seccomp.Options{})
}

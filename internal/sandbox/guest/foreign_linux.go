package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// settleIn is confine for a sandbox with a kernel of its own. That it is one is
// looked at first: under the host's kernel the supervisor would be without its
// walls.
func settleIn(s Setup) error {
	if err := inGVisor(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	unix.Umask(0)
	for _, l := range s.Foreign.Links {
		if err := parents(string(l.Path)); err != nil {
			return err
		}
		if err := os.Symlink(string(l.To), string(l.Path)); err != nil && !linksTo(string(l.Path), string(l.To)) {
			return err
		}
		if err := os.Lchown(string(l.Path), 0, 0); err != nil {
			return err
		}
	}
	for _, f := range s.Foreign.Files {
		if err := parents(string(f.Path)); err != nil {
			return err
		}
		if err := os.WriteFile(string(f.Path), f.Data, os.FileMode(f.Perm)); err != nil {
			return err
		}
		if err := os.Lchown(string(f.Path), 0, 0); err != nil {
			return err
		}
	}
	unix.Umask(0o022)
	if err := limit(s); err != nil {
		return err
	}
	// Each thread has to be stopped for each step, so there are few of them yet;
	// those that come later have the numbers of what makes them.
	return becomeOther()
}

// becomeOther gives all threads that number, and of the capabilities those that
// acting for the user takes. Nothing that is started can have any: the bounding
// set is empty from the start, and the inheritable set is from here on.
func becomeOther() error {
	if err := boundless(); err != nil {
		return err
	}
	const keep = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_KILL | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETFCAP
	all := func(what string, nr uintptr, a, b uintptr) error {
		if _, _, errno := syscall.AllThreadsSyscall(nr, a, b, 0); errno != 0 {
			return fmt.Errorf("%s: %w", what, errno)
		}
		return nil
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: keep & 0xffffffff, Permitted: keep & 0xffffffff}}
	groups, err := os.Getgroups()
	if err != nil || len(groups) > 0 || os.Getgid() != SupervisorID || os.Getegid() != SupervisorID {
		return fmt.Errorf("the supervisor was started with the group %d and %d more (%v)", os.Getgid(), len(groups), err)
	}
	for _, err := range []error{
		all("keeping capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1),
		syscall.Setresuid(SupervisorID, SupervisorID, SupervisorID),
		all("capabilities", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0]))),
	} {
		if err != nil {
			return fmt.Errorf("becoming another user: %w", err)
		}
	}
	return nil
}

// boundless refuses any capability in the bounding set.
func boundless() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("checking capabilities: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		if set, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			if set = strings.TrimSpace(set); set != "" && strings.Trim(set, "0") == "" {
				return nil
			}
			return fmt.Errorf("capabilities could be gained inside the sandbox (CapBnd: %s)", set)
		}
	}
	return errors.New("checking capabilities: /proc/self/status doesn't list them")
}

// parents makes the folders above a file or link, as the user's.
func parents(of string) error {
	dir := filepath.Dir(of)
	err := os.Mkdir(dir, 0o755)
	switch {
	case errors.Is(err, os.ErrExist):
		return nil
	case errors.Is(err, os.ErrNotExist):
		if err := parents(dir); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o755)
	}
	if err != nil {
		return err
	}
	return os.Lchown(dir, 0, 0)
}

func linksTo(path, to string) bool {
	is, err := os.Readlink(path)
	return err == nil && is == to
}

// inGVisor refuses any kernel but gVisor's, which has a fixed version text and
// does not know Landlock.
func inGVisor() error {
	version, err := os.ReadFile("/proc/version")
	if err != nil {
		return err
	}
	const sentry = "#1 SMP Sun Jan 10 15:06:54 PST 2016"
	_, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, 1)
	if !strings.Contains(string(version), sentry) || errno != unix.ENOSYS {
		return errors.New("the kernel inside is not gVisor's")
	}
	return nil
}

// serveListeners goes on to serve what confine's counterpart made: the relay's
// listener, then the ports, once or twice.
func (s *supervisor) serveListeners(setup Setup, files []*os.File) {
	if setup.RelayPort != 0 {
		go s.serveListener(files[0], setup.RelayPort)
		files = files[1:]
	}
	for i, f := range files {
		go s.serveListener(f, setup.Ports[i%len(setup.Ports)])
	}
}

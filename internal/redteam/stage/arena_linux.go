package stage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func terminated() (context.Context, func()) {
	return signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
}

// arena turns the namespaces that this process was born into into a machine: a
// root that cannot be written to, memory where anything can, a network that
// ends here.
func arena() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("own mounts: %w", err)
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("read-only root: %w", err)
	}
	for _, p := range []string{"/sys/fs/cgroup", "/dev"} {
		// Without it Bulkhead could set no limits and make no terminals. Not
		// possible, and not needed, where this is not the host's root.
		unix.MountSetattr(unix.AT_FDCWD, p, unix.AT_RECURSIVE, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("/proc of its own: %w (is part of the host's hidden, as in most containers?)", err)
	}
	resolver, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		resolver = ""
	}
	for _, p := range writable {
		st, err := os.Stat(p)
		if err != nil {
			continue
		}
		if err := unix.Mount("tmpfs", p, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=%o", 0o755|st.Mode().Perm()&0o777)); err != nil {
			return fmt.Errorf("%s of its own: %w", p, err)
		}
	}
	for _, p := range []string{"/tmp", "/var/tmp", "/dev/shm"} {
		os.Chmod(p, 0o1777)
	}
	if err := os.Chmod("/run", 0o755); err != nil {
		return err
	}
	if err := os.Mkdir("/run/stage", 0o755); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("victim")); err != nil {
		return err
	}
	return errors.Join(names(resolver), network())
}

// keep takes hold of folders that the arena may cover.
func keep(folders []string) (map[string]int, error) {
	out := map[string]int{}
	for _, p := range folders {
		fd, err := unix.OpenTree(unix.AT_FDCWD, p, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return nil, fmt.Errorf("%s, which the run needs: %w", p, err)
		}
		out[p] = fd
	}
	return out, nil
}

// show puts them back where they were, read-only.
func show(folders map[string]int) error {
	for p, fd := range folders {
		err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		if _, gone := os.Stat(p); err == nil && gone != nil {
			err = os.MkdirAll(p, 0o755)
		}
		if err == nil {
			err = unix.MoveMount(fd, "", unix.AT_FDCWD, p, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}
		if err != nil {
			return fmt.Errorf("%s, which the run needs: %w", p, err)
		}
		unix.Close(fd)
	}
	return nil
}

// names leads every name to the stage's own name server.
func names(resolver string) error {
	text := "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"
	if resolver == "" {
		return errors.New("this host has no /etc/resolv.conf")
	}
	if err := os.WriteFile("/run/stage/resolv.conf", []byte(text), 0o644); err != nil {
		return err
	}
	if _, err := os.Stat(resolver); err != nil { // it was in a folder that is now empty
		if err := os.MkdirAll(filepath.Dir(resolver), 0o755); err != nil {
			return err
		}
		return os.WriteFile(resolver, []byte(text), 0o644)
	}
	return unix.Mount("/run/stage/resolv.conf", resolver, "", unix.MS_BIND, "")
}

func network() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, a := range []string{thief4 + "/32", thief6 + "/128", corp4 + "/32", model4 + "/32", secondModel4 + "/32", "169.254.169.254/32", "100.100.100.200/32"} {
		ip, n, err := net.ParseCIDR(a)
		if err != nil {
			return err
		}
		n.IP = ip
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: n, Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	return nil
}

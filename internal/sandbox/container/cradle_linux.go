package container

import (
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"

	"github.com/bulkhead-dev/bulkhead/internal/childproc"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/guest"
	"github.com/bulkhead-dev/bulkhead/internal/sandbox/warden"
	"golang.org/x/sys/unix"
)

// Child is the cradle's name in the child registry.
const Child = "cradle"

func init() { childproc.Register(Child, cradle) }

// cradle is the first process of the sandbox's pid and mount namespace on the
// host. What it cannot set up it says on standard error, which the warden reads.
func cradle() int {
	runtime.LockOSThread()
	err := lay()
	fmt.Fprintln(os.Stderr, "cradle:", err)
	return 1
}

// lay arranges everything and becomes runsc; it returns only if it fails.
func lay() error {
	if os.Getpid() != 1 {
		return errors.New("this is not the first process of its own namespace")
	}
	in := os.NewFile(warden.ArgsFD, "orders")
	var o orders
	if err := gob.NewDecoder(in).Decode(&o); err != nil {
		return fmt.Errorf("orders: %w", err)
	}
	in.Close()
	if err := childproc.CloseInherited(warden.GuestFD, warden.DataFD, warden.FarFD); err != nil {
		return err
	}
	unix.CloseOnExec(warden.FarFD) // runsc's, not the guard's
	unix.Umask(0)
	if err := moveIn(); err != nil {
		return err
	}
	for _, s := range o.Steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", strings.TrimPrefix(s.At, rootTree), err)
		}
	}
	if err := (step{Do: doBind, At: runscPath, Source: o.Runsc, RO: true, Own: true}).do(); err != nil {
		return err
	}
	if err := os.WriteFile(bundleDir+"/config.json", o.Bundle, 0o600); err != nil {
		return err
	}
	if len(o.Trace) > 0 {
		if err := os.WriteFile(traceConfig, o.Trace, 0o600); err != nil {
			return err
		}
	}
	var guard *os.File
	if len(o.Guarded) > 0 {
		var err error
		if guard, err = startGuard(o.Guarded); err != nil {
			return fmt.Errorf("starting the guard of the workspace: %w", err)
		}
	}
	// The host's files are gone from here, and from all that runsc starts.
	if err := unix.Unmount(hostDir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the host's files: %w", err)
	}
	unix.Umask(0o077)
	if guard != nil {
		if err := listen(guard); err != nil {
			return err
		}
	}
	if _, err := unix.FcntlInt(warden.FarFD, unix.F_SETFD, 0); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", Name, unix.Exec(runscPath, o.Args, []string{}))
}

// moveIn makes an empty root, with the host's beside it.
func moveIn() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separating mounts: %w", err)
	}
	// Any folder will do; what lies in it is still there under hostDir.
	const base = "/tmp"
	if err := unix.Mount("bulkhead", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=64m"); err != nil {
		return fmt.Errorf("an empty root: %w", err)
	}
	for _, d := range []string{hostDir, treeDir, bundleDir, stateDir, scratchDir, "/proc", "/tmp", "/sys", "/dev", "/etc"} {
		if err := os.Mkdir(base+d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", base+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("a proc of its own: %w", err)
	}
	if err := unix.PivotRoot(base, base+hostDir); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := os.WriteFile(scratchDir+"/mask", nil, 0); err != nil {
		return err
	}
	// runsc asks how many processors there may be, and opens /dev/null.
	const cpus = "/sys/devices/system/cpu"
	if err := os.MkdirAll(cpus, 0o755); err != nil {
		return err
	}
	if err := bind(hostDir+cpus, cpus, safe|unix.MOUNT_ATTR_RDONLY); err != nil {
		return fmt.Errorf("%s: %w", cpus, err)
	}
	const null = "/dev/null"
	if err := os.WriteFile(null, nil, 0); err != nil {
		return err
	}
	if err := bind(hostDir+null, null, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_RDONLY); err != nil {
		return fmt.Errorf("%s: %w", null, err)
	}
	return nil
}

func (s step) do() error {
	switch s.Do {
	case doDir:
		return s.point(s.Source)
	case doRoot:
		return s.root()
	case doBind:
		if err := s.point(hostDir + s.Source); err != nil {
			return err
		}
		attr := uint64(safe)
		if s.RO {
			attr |= unix.MOUNT_ATTR_RDONLY
		}
		if s.Layer {
			if err := s.isLayer(); err != nil {
				return err
			}
		}
		if err := bind(hostDir+s.Source, s.At, attr); err != nil || s.Ino == 0 {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(s.At, &st); err != nil || st.Dev != s.Dev || st.Ino != s.Ino {
			return errors.New(guest.Exchanged + s.Source)
		}
		return nil
	case doMaskFile:
		return s.cover(scratchDir + "/mask")
	case doMaskDir:
		dir := scratchDir + "/" + strconv.FormatUint(uint64(s.Perm), 8)
		if err := os.Mkdir(dir, os.FileMode(s.Perm)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return s.cover(dir)
	case doFrame:
		if err := s.point(""); err != nil || s.Own {
			return err
		}
		dir, err := os.MkdirTemp(scratchDir, "frame")
		if err == nil {
			err = os.Chmod(dir, os.FileMode(s.Perm))
		}
		if err != nil {
			return err
		}
		return bind(dir, s.At, safe)
	case doData:
		if s.Image {
			return s.inImage(func(at int, name string) error { return writeAt(at, name, s.Data, s.Perm) })
		}
		if s.Own {
			if err := parents(s.At); err != nil {
				return err
			}
			return os.WriteFile(s.At, s.Data, os.FileMode(s.Perm))
		}
		f, err := os.CreateTemp(scratchDir, "data")
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(s.Data); err != nil {
			return err
		}
		if err := f.Chmod(os.FileMode(s.Perm)); err != nil {
			return err
		}
		return s.cover(f.Name())
	case doLink:
		if s.Image {
			return s.inImage(func(at int, name string) error { return linkAt(at, name, s.Source) })
		}
		if s.Own {
			if err := parents(s.At); err != nil {
				return err
			}
		}
		err := os.Symlink(s.Source, s.At)
		if is, rerr := os.Readlink(s.At); rerr == nil && is == s.Source {
			return nil
		}
		return err
	}
	return fmt.Errorf("unknown step %d", s.Do)
}

// isLayer looks whether the layer still is what stands at its source.
func (s step) isLayer() error {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Statfs(hostDir+s.Source, &fs), unix.Lstat(hostDir+s.Source, &st)); err != nil {
		return err
	}
	if fs.Type != unix.OVERLAYFS_SUPER_MAGIC || uint64(st.Dev) == s.Device {
		return errors.New("the staged workspace was exchanged while the sandbox was made")
	}
	return nil
}

func (s step) cover(with string) error {
	if err := s.point(with); err != nil {
		return err
	}
	return bind(with, s.At, safe|unix.MOUNT_ATTR_RDONLY)
}

// point makes a mount point like what is to be mounted (a directory if that is
// not known), or looks whether there is one that is no link.
func (s step) point(like string) error {
	if s.Image {
		isDir := true
		if like != "" {
			st, err := os.Stat(like)
			if err != nil {
				return fmt.Errorf("it is not there: %w", cause(err))
			}
			isDir = st.IsDir()
		}
		return s.inImage(func(at int, name string) error {
			if isDir {
				fd, err := dirAt(at, name)
				if err == nil {
					unix.Close(fd)
				}
				return err
			}
			return writeAt(at, name, nil, 0o444)
		})
	}
	if s.Own {
		if err := parents(s.At); err != nil {
			return err
		}
		if like != "" {
			st, err := os.Stat(like)
			if err != nil {
				return fmt.Errorf("it is not there: %w", cause(err))
			}
			if !st.IsDir() {
				f, err := os.OpenFile(s.At, os.O_CREATE|unix.O_NOFOLLOW, 0o444)
				if err != nil {
					return err
				}
				return f.Close()
			}
		}
		perm := os.FileMode(s.Perm)
		if perm == 0 {
			perm = 0o755
		}
		if err := os.Mkdir(s.At, perm); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	}
	st, err := os.Lstat(s.At)
	switch {
	case err != nil:
		return fmt.Errorf("it would have to be created on the host: %w", cause(err))
	case st.Mode()&os.ModeSymlink != 0:
		return errors.New("it is a symbolic link")
	}
	return nil
}

func parents(at string) error { return os.MkdirAll(path.Dir(at), 0o755) }

func cause(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// safe is what every mount of the host's files has.
const safe = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// bind shows source, with what is mounted in it, at a path. Neither may be led
// elsewhere by a link.
func bind(source, at string, attributes uint64) error {
	from, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("showing it: %w", err)
	}
	defer unix.Close(from)
	attr := unix.MountAttr{Attr_set: attributes}
	if err := unix.MountSetattr(from, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("making it safe: %w", err)
	}
	to, err := unix.Openat2(unix.AT_FDCWD, at, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return fmt.Errorf("its place: %w", err)
	}
	defer unix.Close(to)
	if err := unix.MoveMount(from, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting it: %w", err)
	}
	return nil
}

package trust

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ownDir is a folder that only this user could have written.
type ownDir struct{ f *os.File }

func openDir(dir string, create bool) (*ownDir, error) {
	if create {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	for _, at := range []string{filepath.Dir(dir), dir} {
		fd, err := unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: at, Err: err}
		}
		f := os.NewFile(uintptr(fd), at)
		if err := ours(f, unix.S_IFDIR); err != nil {
			f.Close()
			return nil, err
		}
		if at == dir {
			return &ownDir{f}, nil
		}
		f.Close()
	}
	return nil, errors.New("no folder")
}

// ours checks what the handle says: whose it is, and who else may write it.
func ours(f *os.File, kind uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT != kind:
		return fmt.Errorf("%s is of another kind than it should be", Show(f.Name()))
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, not to you (%d)", Show(f.Name()), st.Uid, os.Geteuid())
	case st.Mode&0o022 != 0:
		return fmt.Errorf("%s can be written by others (mode %04o)", Show(f.Name()), st.Mode&0o7777)
	}
	return nil
}

func (d *ownDir) close() { d.f.Close() }

func (d *ownDir) read(name string) ([]byte, error) {
	fd, err := unix.Openat(int(d.f.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := ours(f, unix.S_IFREG); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(f, maxRecord+1))
}

func (d *ownDir) names() ([]string, error) { return d.f.Readdirnames(-1) }

// write replaces a record in one step.
func (d *ownDir) write(name string, data []byte) error {
	dir := int(d.f.Fd())
	tmp := fmt.Sprintf(".new-%d-%s", os.Getpid(), name)
	fd, err := unix.Openat(dir, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), tmp)
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = unix.Renameat(dir, tmp, dir, name)
	}
	if err != nil {
		unix.Unlinkat(dir, tmp, 0)
	}
	return err
}

func (d *ownDir) remove(name string) error { return unix.Unlinkat(int(d.f.Fd()), name, 0) }

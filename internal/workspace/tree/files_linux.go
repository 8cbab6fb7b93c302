package tree

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// OpenRoot opens a folder to work below; the last element of dir may not be a link.
func OpenRoot(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// Handle opens what is at name without reading it: a link itself, a device
// without waking it. The error is unix.ENOENT or unix.ENOTDIR if nothing is there,
// unix.ELOOP if a link stands on the way.
func Handle(root *os.File, name string) (int, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := open(int(root.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return -1, st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// Lstat says what is at name; ok is false if nothing is.
func Lstat(root *os.File, name string) (st unix.Stat_t, ok bool, err error) {
	fd, st, err := Handle(root, name)
	switch {
	case err == nil:
		unix.Close(fd)
		return st, true, nil
	case Absent(err):
		return st, false, nil
	}
	return st, false, err
}

// Absent reports whether an error says that nothing is there.
func Absent(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) }

// Dir opens a directory for reading; "" and "." are the root.
func Dir(root *os.File, name string) (*os.File, error) {
	if name == "" {
		name = "."
	}
	fd, err := open(int(root.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: Show(name), Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Parent opens the directory that holds name and returns name's last element.
func Parent(root *os.File, name string) (*os.File, string, error) {
	dir, base := path.Split(name)
	d, err := Dir(root, strings.TrimSuffix(dir, "/"))
	return d, base, err
}

func open(dir int, name string, flags uint64) (int, error) {
	for {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: beneath})
		if err != unix.EAGAIN && err != unix.EINTR { // EAGAIN: something was renamed while .. was judged
			return fd, err
		}
	}
}

// Read opens a handle's regular file for reading.
func Read(handle int) (*os.File, error) {
	name := "/proc/self/fd/" + strconv.Itoa(handle)
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// OpenFile opens the regular file at name for reading. Anything else that is
// there is an error and not opened.
func OpenFile(root *os.File, name string) (*os.File, unix.Stat_t, error) {
	fd, st, err := Handle(root, name)
	if err != nil {
		return nil, st, &os.PathError{Op: "open", Path: Show(name), Err: err}
	}
	defer unix.Close(fd)
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, st, &os.PathError{Op: "open", Path: Show(name), Err: errors.New("not a regular file")}
	}
	f, err := Read(fd)
	return f, st, err
}

// Readlink returns the text of a handle's link.
func Readlink(handle int) (string, error) {
	buf := make([]byte, MaxPath+1)
	n, err := unix.Readlinkat(handle, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// Cloner copies contents, and remembers whether the filesystem shares them.
// The zero value is ready. Safe for concurrent use.
type Cloner struct{ cannot atomic.Bool }

const smallFile = 128 << 10

// Copy makes the empty dst hold the first size bytes of src and returns how many
// were written: 0 if the filesystem lets both share the blocks. Holes stay holes.
func (c *Cloner) Copy(dst, src *os.File, size int64) (int64, error) {
	if size == 0 {
		return 0, nil
	}
	if !c.cannot.Load() {
		if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
			return 0, unix.Ftruncate(int(dst.Fd()), size)
		}
		c.cannot.Store(true)
	}
	if size <= smallFile {
		buf := make([]byte, size)
		n, err := io.ReadFull(src, buf)
		if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
			return 0, err
		}
		w, err := dst.Write(buf[:n])
		return int64(w), err
	}
	return copySparse(dst, src, size)
}

func copySparse(dst, src *os.File, size int64) (written int64, err error) {
	in, out := int(src.Fd()), int(dst.Fd())
	for at := int64(0); at < size; {
		data, err := unix.Seek(in, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		hole := size
		if err != nil { // no holes on this filesystem
			data = at
		} else if hole, err = unix.Seek(in, data, unix.SEEK_HOLE); err != nil {
			return written, err
		}
		data, hole = min(data, size), min(hole, size)
		n, err := copyRange(out, in, data, hole-data)
		written += n
		if err != nil {
			return written, err
		}
		if n < hole-data { // it became shorter
			break
		}
		at = hole
	}
	return written, unix.Ftruncate(out, size)
}

func copyRange(out, in int, at, n int64) (written int64, err error) {
	var buf []byte
	for written < n {
		r, w := at+written, at+written
		var got int
		if buf == nil {
			got, err = unix.CopyFileRange(in, &r, out, &w, int(min(n-written, 1<<30)), 0)
			switch err {
			case unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.EPERM:
				buf = make([]byte, 256<<10)
				continue
			case unix.EINTR:
				continue
			}
		} else if got, err = unix.Pread(in, buf[:min(n-written, int64(len(buf)))], r); err == nil && got > 0 {
			got, err = unix.Pwrite(out, buf[:got], w)
		}
		if err != nil {
			return written, err
		}
		if got == 0 {
			return written, nil
		}
		written += int64(got)
	}
	return written, nil
}

// Entry is one name in a directory.
type Entry struct {
	Name string
	Type uint8 // DT_*
}

// List returns the entries of an open directory, by name.
func List(dir *os.File) ([]Entry, error) {
	if _, err := unix.Seek(int(dir.Fd()), 0, unix.SEEK_SET); err != nil {
		return nil, err
	}
	var out []Entry
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(int(dir.Fd()), buf)
		if err != nil {
			return nil, &os.PathError{Op: "list", Path: Show(dir.Name()), Err: err}
		}
		if n <= 0 {
			break
		}
		// struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name.
		for b := buf[:n]; len(b) >= 19; {
			size := int(binary.NativeEndian.Uint16(b[16:]))
			if size < 19 || size > len(b) {
				break
			}
			typ, name := b[18], b[19:size]
			b = b[size:]
			if i := bytes.IndexByte(name, 0); i >= 0 {
				name = name[:i]
			}
			if s := string(name); s != "" && s != "." && s != ".." {
				out = append(out, Entry{s, typ})
			}
		}
	}
	slices.SortFunc(out, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// ErrSkip, returned for a directory, leaves out what is in it.
var ErrSkip = errors.New("skip this directory")

// Walk calls f with everything below name (not itself; "" is the root), a
// directory before what is in it. f gets the open directory that holds the entry.
func Walk(root *os.File, name string, f func(dir *os.File, path string, st *unix.Stat_t) error) error {
	d, err := Dir(root, name)
	if err != nil {
		return err
	}
	defer d.Close()
	return walk(d, name, f, 0)
}

// maxDepth bounds descriptors and stack; the kernel's own bound on a path is near.
const maxDepth = 2048

func walk(d *os.File, name string, f func(*os.File, string, *unix.Stat_t) error, depth int) error {
	if depth > maxDepth {
		return &os.PathError{Op: "walk", Path: Show(name), Err: errors.New("folders lie too deep in one another")}
	}
	list, err := List(d)
	if err != nil {
		return err
	}
	for _, e := range list {
		at := e.Name
		if name != "" {
			at = name + "/" + e.Name
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(d.Fd()), e.Name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			return &os.PathError{Op: "stat", Path: Show(at), Err: err}
		}
		switch err := f(d, at, &st); {
		case err == ErrSkip:
			continue
		case err != nil:
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		fd, err := open(int(d.Fd()), e.Name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return &os.PathError{Op: "open", Path: Show(at), Err: err}
		}
		sub := os.NewFile(uintptr(fd), at)
		err = walk(sub, at, f, depth+1)
		sub.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// Remove removes name in the open directory with all below it, following nothing.
// Folders that forbid it are opened first, as far as they are the caller's own.
// What is not there is fine.
func Remove(dir *os.File, name string) error { return remove(dir, name, 0) }

func remove(dir *os.File, name string, depth int) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if errors.Is(err, unix.ENOTDIR) || depth > maxDepth || !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return &os.PathError{Op: "remove", Path: Show(name), Err: err}
	}
	if unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR) == nil {
		return nil
	}
	handle, err := open(int(dir.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "remove", Path: Show(name), Err: err}
	}
	own := "/proc/self/fd/" + strconv.Itoa(handle)
	_ = unix.Chmod(own, 0o700) // if it is not ours, the next step says so
	fd, err := unix.Open(own, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	unix.Close(handle)
	if err != nil {
		return &os.PathError{Op: "remove", Path: Show(name), Err: err}
	}
	sub := os.NewFile(uintptr(fd), name)
	defer sub.Close()
	list, err := List(sub)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := remove(sub, e.Name, depth+1); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "remove", Path: Show(name), Err: err}
	}
	return nil
}

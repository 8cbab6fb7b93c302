package administrator

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/vocabulary"
)

func broken(path, what, remedy string) error {
	return vocabulary.Exitf(vocabulary.ExitPolicyInvalid, "the administrator's policy %s can't be believed: %s\nnothing was started\n%s", path, what, remedy)
}

// Read returns the bytes of the policy at an absolute path; nil: there is none.
func Read(path string) ([]byte, error) {
	dir, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, broken(path, err.Error(), "look at the root folder")
	}
	defer func() { unix.Close(dir) }()
	elements := strings.Split(strings.TrimPrefix(path, "/"), "/")
	// What is wrong with a folder above is only said once the file is there:
	// otherwise there is nothing to be believed.
	problem := rootsAlone(dir, "/", unix.S_IFDIR)
	for i, name := range elements {
		at := "/" + strings.Join(elements[:i+1], "/")
		last := i == len(elements)-1
		flags, kind := unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(unix.S_IFDIR)
		if last {
			kind = unix.S_IFREG
		}
		fd, err := unix.Openat(dir, name, flags, 0)
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil, nil
		case err != nil:
			return nil, broken(path, at+": "+err.Error(), "as root: chmod 755 /"+strings.Join(elements[:i], "/")+", so that its users can read what limits them")
		}
		unix.Close(dir)
		dir = fd
		if err := rootsAlone(fd, at, kind); err != nil {
			if isKind(fd, kind) {
				if problem == nil {
					problem = err
				}
				continue
			}
			return nil, broken(path, err.Error(), "as root: put a regular file there, or remove it")
		}
	}
	if problem != nil {
		return nil, broken(path, problem.Error(), "as root: chown root:root and chmod go-w it")
	}
	return read(dir, path)
}

// read reopens a file that was judged, through its handle.
func read(judged int, path string) ([]byte, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", judged), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, broken(path, "it can't be read: "+err.Error(), "as root: chmod 644 "+path)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if err := rootsAlone(fd, path, unix.S_IFREG); err != nil {
		return nil, broken(path, err.Error(), "as root: chown root:root and chmod go-w it")
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	switch {
	case err != nil:
		return nil, broken(path, "it can't be read: "+err.Error(), "as root: look at the disk")
	case len(data) > MaxSize:
		return nil, broken(path, fmt.Sprintf("it has more than %d bytes", MaxSize), "as root: make it one that a person can review")
	case data == nil:
		data = []byte{}
	}
	return data, nil
}

func isKind(fd int, kind uint32) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == kind
}

// rootsAlone judges a handle: of this kind, root's, and written by nobody else.
func rootsAlone(fd int, at string, kind uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return fmt.Errorf("%s is a link", at)
	case st.Mode&unix.S_IFMT != kind:
		return fmt.Errorf("%s is not a %s", at, map[uint32]string{unix.S_IFREG: "regular file", unix.S_IFDIR: "folder"}[kind])
	case st.Uid != 0:
		return fmt.Errorf("%s belongs to user %d, not to root", at, st.Uid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("%s can be written by others than root (mode %04o)", at, st.Mode&0o7777)
	}
	return nil
}

package staged

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-dev/bulkhead/internal/workspace/journal"
	"github.com/bulkhead-dev/bulkhead/internal/workspace/tree"
)

// Layer is an open layer.
type Layer struct {
	Journal *journal.Journal
	dir     string
	upper   *os.File
	since   int64 // ns: what changed in the real folder later is a conflict
}

// Create makes the layer of a session in dir, for the folder m.Workspace.
func Create(dir string, m journal.Meta) (*Layer, error) {
	root, err := tree.OpenRoot(m.Workspace)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	st, err := root.Stat()
	if err != nil {
		return nil, err
	}
	m.Index = journal.IndexNow(root)
	j, err := journal.Create(dir, m)
	if err != nil {
		return nil, err
	}
	// The workspace's own mode is that of "upper".
	for _, sub := range []struct {
		name string
		mode os.FileMode
	}{{"upper", st.Mode().Perm()}, {"work", 0o700}} {
		if err = os.Mkdir(filepath.Join(dir, sub.name), 0o700); err == nil {
			err = os.Chmod(filepath.Join(dir, sub.name), sub.mode)
		}
		if err != nil {
			j.Close()
			return nil, fmt.Errorf("making a layer in %s: %w", dir, err)
		}
	}
	return open(dir, j)
}

// Open opens a layer. It fails with journal.ErrRunning while its session runs,
// and with fs.ErrNotExist if there is none in dir.
func Open(dir string) (*Layer, error) {
	j, err := journal.Open(dir)
	if err != nil {
		return nil, err
	}
	return open(dir, j)
}

// Look opens a layer for Changes only, also while its session runs.
func Look(dir string) (*Layer, error) {
	j, err := journal.Read(dir)
	if err != nil {
		return nil, err
	}
	return open(dir, j)
}

func open(dir string, j *journal.Journal) (*Layer, error) {
	l := &Layer{Journal: j, dir: dir}
	upper, err := tree.OpenRoot(filepath.Join(dir, "upper"))
	if err == nil {
		l.upper = upper
		l.since, err = j.Since()
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Close closes it.
func (l *Layer) Close() {
	if l.upper != nil {
		l.upper.Close()
	}
	l.Journal.Close()
}

// Holds reports whether dir has a layer, besides a journal.
func Holds(dir string) bool {
	st, err := os.Lstat(filepath.Join(dir, "upper"))
	return err == nil && st.IsDir()
}

// Drop removes a session's folder with all that is kept in it. The kernel's part
// forbids reading; the folder's own user may change that.
func Drop(dir string) error {
	parent, err := tree.OpenRoot(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	return tree.Remove(parent, filepath.Base(dir))
}

// The kernel's marks, in the names that it uses for ordinary users.
const (
	xattrOpaque   = "user.overlay.opaque"
	xattrWhiteout = "user.overlay.whiteout"
	xattrOrigin   = "user.overlay.origin"
	xattrRedirect = "user.overlay.redirect"
	xattrMetacopy = "user.overlay.metacopy"
)

// mark returns a mark of the open directory's entry, and whether there is one.
func mark(dir *os.File, name, attr string) (string, bool, error) {
	handle, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false, err
	}
	defer unix.Close(handle)
	buf := make([]byte, 64)
	n, err := unix.Getxattr("/proc/self/fd/"+strconv.Itoa(handle), attr, buf)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ELOOP):
		return "", false, nil
	case errors.Is(err, unix.ERANGE):
		return "", true, nil
	case err != nil:
		return "", false, err
	}
	return string(buf[:n]), true, nil
}

// isWhiteout reports whether an entry of a layer says that the name is gone.
func isWhiteout(dir *os.File, name string, st *unix.Stat_t) (bool, error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev == 0, nil
	case unix.S_IFREG:
		if st.Size == 0 {
			_, ok, err := mark(dir, name, xattrWhiteout)
			return ok, err
		}
	}
	return false, nil
}

// Missing reports whether the session sees nothing at path, although the real
// folder has something there: it, or a folder that holds it, is gone in the layer.
func (l *Layer) Missing(path string) (bool, error) {
	dir, err := tree.Dir(l.upper, "")
	if err != nil {
		return false, err
	}
	defer func() { dir.Close() }()
	opaque := false
	for name, rest, more := cut(path); ; name, rest, more = cut(rest) {
		var st unix.Stat_t
		if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, unix.ENOENT) {
			return opaque, nil
		} else if err != nil {
			return false, err
		}
		gone, err := isWhiteout(dir, name, &st)
		if err != nil || gone || !more {
			return gone, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return true, nil
		}
		v, _, err := mark(dir, name, xattrOpaque)
		if err != nil {
			return false, err
		}
		opaque = opaque || v == "y"
		next, err := tree.Dir(dir, name)
		if err != nil {
			return false, err
		}
		dir.Close()
		dir = next
	}
}

func cut(path string) (first, rest string, more bool) {
	for i := range len(path) {
		if path[i] == '/' {
			return path[:i], path[i+1:], true
		}
	}
	return path, "", false
}

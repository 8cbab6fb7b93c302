package workspace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// hit is a name of interest found in the directory dir.
type hit struct {
	dir, name string
	typ       uint8 // DT_*
}

// bareGit is the name of a hit that says that dir itself is a git directory.
const bareGit = "\x00bare"

var errTooMany = errors.New("too many directories")

// treeWalk lists a tree without following links, with one goroutine for each
// processor. It opens every directory relative to the root's handle, so a
// directory exchanged for a link meanwhile is left out, not followed.
type treeWalk struct {
	want  map[string]bool // names reported
	globs []string        // patterns of names reported
	prune map[string]bool // paths not entered: other mounts
	depth int             // 0: no bound

	root   string
	rootFD int
	budget *atomic.Int64 // directories left

	mu      sync.Mutex
	cond    sync.Cond
	stack   []string
	working int
	hits    []hit
	err     error
}

func (w *treeWalk) run(root string) ([]hit, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOTDIR) {
			return nil, nil // what can't be listed here can't be listed inside
		}
		return nil, err
	}
	defer unix.Close(fd)
	w.root, w.rootFD = root, fd
	w.cond.L = &w.mu
	w.stack = []string{root}
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 8) {
		wg.Go(w.work)
	}
	wg.Wait()
	return w.hits, w.err
}

func (w *treeWalk) work() {
	buf := make([]byte, 32<<10)
	var subdirs []string
	var hits []hit
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for len(w.stack) == 0 && w.working > 0 && w.err == nil {
			w.cond.Wait()
		}
		if len(w.stack) == 0 || w.err != nil {
			w.cond.Broadcast()
			return
		}
		dir := w.stack[len(w.stack)-1]
		w.stack = w.stack[:len(w.stack)-1]
		w.working++
		w.mu.Unlock()

		subdirs, hits = subdirs[:0], hits[:0]
		var err error
		if w.budget.Add(-1) < 0 {
			err = errTooMany
		} else {
			subdirs, hits, err = w.list(dir, buf, subdirs, hits)
		}

		w.mu.Lock()
		w.working--
		w.stack = append(w.stack, subdirs...)
		w.hits = append(w.hits, hits...)
		if err != nil && w.err == nil {
			w.err = err
		}
		if len(subdirs) > 1 || w.working == 0 || err != nil {
			w.cond.Broadcast()
		}
	}
}

func (w *treeWalk) list(dir string, buf []byte, subdirs []string, hits []hit) ([]string, []hit, error) {
	fd := -1
	var err error
	if dir == w.root {
		fd, err = unix.Dup(w.rootFD)
	} else {
		fd, err = unix.Openat2(w.rootFD, dir[len(strings.TrimSuffix(w.root, "/"))+1:], &unix.OpenHow{
			Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		})
	}
	switch err {
	case nil:
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EIO:
		return subdirs, hits, &pathError{dir, err}
	default: // gone, exchanged, or closed to the user: closed inside too
		return subdirs, hits, nil
	}
	defer unix.Close(fd)
	deep := w.depth > 0 && strings.Count(dir[len(w.root):], "/") >= w.depth
	gitParts := 0
	err = dirents(fd, buf, func(typ uint8, name []byte) {
		if w.want[string(name)] || typ == unix.DT_SOCK || w.matches(name) {
			hits = append(hits, hit{dir, string(name), typ})
		}
		switch string(name) {
		case "HEAD":
			gitParts |= 1
		case "objects":
			gitParts |= 2
		case "refs":
			gitParts |= 4
		case ".git":
			if typ == unix.DT_DIR {
				return // searched by gitDir
			}
		}
		if typ == unix.DT_DIR && !deep {
			if p := filepath.Join(dir, string(name)); !w.prune[p] {
				subdirs = append(subdirs, p)
			}
		}
	})
	if err != nil {
		return subdirs, hits, &pathError{dir, err}
	}
	if gitParts == 7 {
		return subdirs[:0], append(hits, hit{dir: dir, name: bareGit, typ: unix.DT_DIR}), nil
	}
	return subdirs, hits, nil
}

func (w *treeWalk) matches(name []byte) bool {
	for _, g := range w.globs {
		if ok, _ := filepath.Match(g, string(name)); ok {
			return true
		}
	}
	return false
}

// dirents calls f with every entry of an open directory but . and .., using
// buf.
func dirents(fd int, buf []byte, f func(typ uint8, name []byte)) error {
	for {
		n, err := unix.ReadDirent(fd, buf)
		if n <= 0 || err != nil {
			return err
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
			if len(name) == 0 || string(name) == "." || string(name) == ".." {
				continue
			}
			if typ == unix.DT_UNKNOWN {
				typ = dtype(fd, string(name))
			}
			f(typ, name)
		}
	}
}

func dtype(dirfd int, name string) uint8 {
	var st unix.Stat_t
	if unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return unix.DT_UNKNOWN
	}
	return uint8(st.Mode & unix.S_IFMT >> 12)
}

type pathError struct {
	path string
	err  error
}

func (e *pathError) Error() string { return show(e.path) + ": " + e.err.Error() }
func (e *pathError) Unwrap() error { return e.err }

// eachBelow calls f with every entry below dir that is no link; f says whether to enter a
// directory. budget bounds the entries of several calls together.
func eachBelow(dir string, depth int, budget *int, f func(path string, st *unix.Stat_t) bool) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return &pathError{dir, err}
	}
	defer unix.Close(fd)
	var names []string
	err = dirents(fd, make([]byte, 16<<10), func(typ uint8, name []byte) {
		if typ != unix.DT_LNK {
			names = append(names, string(name))
		}
	})
	if err != nil {
		return &pathError{dir, err}
	}
	for _, name := range names {
		if *budget--; *budget < 0 {
			return errTooMany
		}
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			return &pathError{filepath.Join(dir, name), err}
		}
		p := filepath.Join(dir, name)
		enter := f(p, &st)
		if enter && depth > 1 && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := eachBelow(p, depth-1, budget, f); err != nil {
				return err
			}
		}
	}
	return nil
}
